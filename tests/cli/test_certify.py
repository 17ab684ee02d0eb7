"""`hf-watermark certify`: exit statuses, what is printed and drawn, and every bad input."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from hf_watermark import CertifiedVerifier
from hf_watermark.attacks import ReestimateBatchNorm, UniformQuantize
from hf_watermark.cli.certify import as_json, measure_attacks
from hf_watermark.methods.certified import RADII
from hf_watermark.methods.certified.certificate import curve_of, level_b_matches


PASSPHRASE = "a long enough passphrase"
DATA_FREE = ["4-bit weights", "8-bit weights", "int8 weights", "prune 10 %", "prune 50 %"]


@pytest.fixture(scope="module")
def marked(marked_by):
    return marked_by("certified")


@pytest.fixture(scope="module")
def key(marked, tmp_path_factory):
    """The marked model's key without a passphrase, which is quicker to open."""
    with pytest.warns(UserWarning, match="without a passphrase"):
        return marked.key.save(tmp_path_factory.mktemp("keys") / "open")


@pytest.fixture
def claim(marked):
    return marked.key.claims()[0]


def rows_of(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.splitlines() if line.startswith("│")]


def test_tables_of_a_certified_model(run, marked, key):
    result = run("certify", marked.output, "--key", key, "--radii", "0.5,1.0,0.2")
    assert result.exit_code == 0, result.output
    rows = rows_of(result.stdout)
    assert [row[:2] for row in rows[:3]] == [["0.2", "0.02"], ["0.5", "0.05"], ["1", "0.1"]]
    certificate = marked.trainer.certify((0.2, 0.5, 1.0))
    for row, expected in zip(rows, certificate.curves[0], strict=False):
        share = f"{100 * expected.accuracy:.1f} %"
        assert row[2:] == [share, f"{expected.matches}/80", f"{expected.log2_p:.1f}", "yes", "200"]
    attacks = rows[3:]
    assert sorted(row[0] for row in attacks) == DATA_FREE
    assert [float(row[1]) for row in attacks] == sorted(float(row[1]) for row in attacks)
    assert all(row[2] == ("yes" if float(row[1]) <= certificate.radius else "no") for row in attacks)
    assert "certified: with confidence 0.99 every net within 1 sigma" in result.stdout
    assert "bound to no beacon" not in result.stderr


def test_json_is_pure_and_says_what_the_trainer_says(run, capfd, marked, tmp_path):
    words = tmp_path / "words"
    words.write_text(PASSPHRASE)
    words.chmod(0o600)
    command = ["certify", marked.output, "--key", marked.key_folder, "--passphrase-file", words]
    result = run(*command, "--radii", "0.4,0.8", "--confidence", "0.95", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert capfd.readouterr().out == "", "nothing goes past the command to the real stdout"
    expected = marked.trainer.certify((0.4, 0.8), confidence=0.95).to_dict()
    assert document.keys() == expected.keys()
    assert document["curves"] == expected["curves"]
    assert document["radius"] == 0.8 and document["certified"] is True and document["confidence"] == 0.95
    assert sorted(document["attack_distances"]) == DATA_FREE
    assert PASSPHRASE not in result.output


def test_at_least_needs_fewer_draws_and_states_that_accuracy(run, marked, key):
    arguments = ["--radii", "0.2", "--at-least", "0.6", "--draws", "1000", "--json"]
    document = json.loads(run("certify", marked.output, "--key", key, *arguments).stdout)
    (row,) = document["curves"]["0"]
    assert row["matches"] == 48 and row["certified"] and row["draws"] < 500


def test_a_model_without_the_mark_is_not_certified(run, make_resnet, key, tmp_path):
    make_resnet().save_pretrained(tmp_path / "plain")
    result = run("certify", tmp_path / "plain", "--key", key, "--radii", "0.2,0.4", "--plot", tmp_path / "plain.png")
    assert result.exit_code == 1, result.output
    assert "not certified: at no radius" in result.stdout
    assert {row[5] for row in rows_of(result.stdout)[:2]} == {"no"}
    assert {row[2] for row in rows_of(result.stdout)[2:]} == {"no"}
    assert (tmp_path / "plain.png").is_file()


def test_fine_tuning_joins_the_attacks_where_there_are_data(run, marked, key):
    tune = ["--data", "digits", "--learning-rate", "0.002", "--epochs", "0.05", "--radii", "0.2", "--json"]
    result = run("certify", marked.output, "--key", key, *tune)
    assert result.exit_code == 0, result.output
    distances = json.loads(result.stdout)["attack_distances"]
    tuned = {label: distance for label, distance in distances.items() if label not in DATA_FREE}
    assert list(tuned) == ["fine-tune, rate 0.0002", "fine-tune, rate 0.002", "fine-tune, rate 2e-05"]
    assert len(distances) == 8 and all(distance > 0 for distance in tuned.values())


def test_an_attack_that_diverges_is_left_out_and_the_certificate_stands(run, marked, key):
    tune = ["--data", "digits", "--learning-rate", "1e30", "--epochs", "0.1", "--radii", "0.2", "--json"]
    result = run("certify", marked.output, "--key", key, *tune)
    assert result.exit_code == 0, result.output
    assert "warning: fine-tune, rate 1e+30 was left out" in result.stderr
    assert set(DATA_FREE) <= json.loads(result.stdout)["attack_distances"].keys()


def test_what_the_certificate_holds_fixed_is_infinitely_far(marked, claim, patterned):
    """A key that certifies parameters alone says nothing about new BatchNorm statistics, however small their change."""
    config = claim.assignment.config | {"moves": "parameters", "noise": "isotropic"}
    scales = {name: 1.0 for name, _ in marked.model.named_parameters()}
    assignment = dataclasses.replace(
        claim.assignment, config=config, layout=claim.assignment.layout | {"scales": scales}
    )
    attacks = {"statistics": ReestimateBatchNorm(batches=1), "8 bits": UniformQuantize(8)}

    verifier = CertifiedVerifier(dataclasses.replace(claim, assignment=assignment))
    parameters_only = measure_attacks(verifier, marked.model, attacks, patterned)
    assert parameters_only["statistics"] == math.inf and 0 < parameters_only["8 bits"] < math.inf
    everything = measure_attacks(CertifiedVerifier(claim), marked.model, attacks, patterned)
    assert 0 < everything["statistics"] < math.inf

    certificate = dataclasses.replace(marked.trainer.certify((0.2,)), attack_distances=parameters_only)
    assert json.loads(as_json(certificate))["attack_distances"]["statistics"] is None


def test_the_matches_of_the_dashed_line_are_those_from_which_rows_are_certified(claim):
    verifier = CertifiedVerifier(claim)
    needed = level_b_matches(verifier)
    certified = [
        curve_of(np.full(200, matches), verifier, [0.2], 0.001)[0].certified for matches in (needed - 1, needed)
    ]
    assert certified == [False, True]


def test_plot_is_a_png_and_never_overwritten(run, refused, marked, key, tmp_path):
    arguments = ["certify", marked.output, "--key", key, "--radii", "0.2"]
    plot = tmp_path / "certificate.png"
    assert run(*arguments, "--plot", plot).exit_code == 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "certificate.png exists and is left as it is" in refused(*arguments, "--plot", plot)
    assert "folder does not exist" in refused(*arguments, "--plot", tmp_path / "no" / "certificate.png")
    assert "ends in .png" in refused(*arguments, "--plot", tmp_path / "certificate.svg")


def test_a_key_without_the_method_is_refused_by_name(refused, shop):
    message = refused("certify", shop / "both", "--key", shop / "keys" / "both")
    assert "marks with greedy_residuals, function_coupled; only the method 'certified'" in message


def test_a_key_without_a_beacon_is_told_what_a_claim_needs(run, marked, tmp_path):
    """The same secret with its beacon taken away draws other triggers, so nothing is certified either."""
    unbound = dataclasses.replace(marked.key, beacon=bytes(32), beacon_source="none")
    with pytest.warns(UserWarning, match="without a passphrase"):
        unbound.save(tmp_path / "key")
    result = run("certify", marked.output, "--key", tmp_path / "key", "--radii", "0.2")
    assert result.exit_code == 1
    assert "warning: this key is bound to no beacon, so a claim needs level N (-128 bits)" in result.stderr


def test_a_radius_beyond_the_draws_is_refused_with_the_draws_that_would_do(run, refused, marked, key):
    arguments = ["certify", marked.output, "--key", key, "--radii", "2.0"]
    message = refused(*arguments)
    assert "radius 2.0 is beyond what 200 draws can certify" in message
    enough = int(message.rsplit("draws=", 1)[1])
    assert f"beyond what {enough - 1} draws" in refused(*arguments, "--draws", enough - 1)
    document = json.loads(run(*arguments, "--draws", enough, "--json").stdout)
    assert document["draws"] == enough and document["curves"]["0"][0]["matches"] is not None


def test_radii_that_make_no_sense(refused, marked, key):
    arguments = ["certify", marked.output, "--key", key]
    assert f"radius {max(RADII)} is beyond what 20 draws" in refused(*arguments, "--draws", 20)
    assert "'0.2;0.4': write numbers" in refused(*arguments, "--radii", "0.2;0.4")
    assert "different radii between 0 and 10" in refused(*arguments, "--radii", "0.2,0.2")
    assert "different radii between 0 and 10" in refused(*arguments, "--radii", "nan")


def test_numbers_out_of_range(refused, marked, key):
    arguments = ["certify", marked.output, "--key", key, "--radii", "0.2"]
    assert "`confidence` is 0.995" in refused(*arguments, "--confidence", "0.995")
    assert "`at_least` is 1.5" in refused(*arguments, "--at-least", "1.5")
    assert "epochs=0.0 is not usable" in refused(*arguments, "--data", "digits", "--epochs", "0")
    assert "learning_rate=-0.01 is not usable" in refused(*arguments, "--data", "digits", "--learning-rate", "-1")


def test_models_that_cannot_be_certified(refused, make_resnet, marked, key, tmp_path):
    copy.deepcopy(marked.model).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert "is bfloat16: parameter noise needs float32" in refused(
        "certify", tmp_path / "half", "--key", key, "--radii", "0.2"
    )
    make_resnet(depths=[1, 2]).save_pretrained(tmp_path / "deeper")
    message = refused("certify", tmp_path / "deeper", "--key", key, "--radii", "0.2")
    assert "not the owner's architecture" in message
    assert "no such folder; download the model first" in refused("certify", tmp_path / "nothing", "--key", key)


def test_keys_that_cannot_be_opened(refused, marked, tmp_path):
    assert "give its passphrase" in refused("certify", marked.output, "--key", marked.key_folder)
    assert "the one with the key.json" in refused("certify", marked.output, "--key", tmp_path)
