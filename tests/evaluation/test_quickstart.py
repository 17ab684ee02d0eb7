"""The quickstart end to end with very little training: files, secrets, and what it refuses to overwrite."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from hf_watermark import InvalidInput, Owner, WatermarkKey, verify
from hf_watermark.attacks.outcome import USABLE
from hf_watermark.evaluation.quickstart import MARKER, run_quickstart, write_output
from hf_watermark.evaluation.report import render_report


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """`(output folder, record, what the terminal showed)`. Two epochs leave a mark, far too few to claim anything."""
    output, screen = tmp_path_factory.mktemp("quickstart") / "out", io.StringIO()
    record = run_quickstart(
        output,
        epochs=2,
        attack_epochs=0.1,
        distill_epochs=0.1,
        searched_keys=20,
        trigger_steps=2,
        console=Console(file=screen, width=100),
    )
    return output, record, screen.getvalue()


def test_every_file_is_there_and_the_key_is_beside_the_model(run):
    output, record, _ = run

    files = {str(path.relative_to(output)) for path in output.rglob("*") if path.is_file()}
    assert {"model/config.json", "model/model.safetensors", "model/watermark/precommit.json"} <= files
    assert {"key/key.json", "key/pool.safetensors", "owner.json", "evidence.json", "report.html"} <= files
    assert not any("key.json" in name or name.endswith(".bin") for name in files if name.startswith("model/"))
    assert all((output / name).stat().st_mode & 0o777 == 0o600 for name in ("key/key.json", "owner.json"))
    assert json.loads((output / "evidence.json").read_text()) == json.loads(json.dumps(record))


def test_the_saved_key_reads_the_saved_model(run):
    output, record, _ = run

    evidence = verify(output / "model", WatermarkKey.load(output / "key"))

    assert evidence.matches == record["marked"]["evidence"]["matches"]


def test_the_record_covers_twin_attacks_and_forgeries(run):
    _, record, _ = run

    assert record["twin"]["row"]["verdict"] == "not found"
    assert len(record["attacks"]) >= 6
    assert {"overwrite", "counterfeit_secret", "adversarial_triggers", "key_search"} <= {
        forgery["name"] for forgery in record["forgeries"]
    }
    assert not any(forgery["passed"] for forgery in record["forgeries"])
    assert all(set(row["methods"]) == {"greedy_residuals", "function_coupled"} for row in record["attacks"])
    assert all(0 <= row["accuracy"] <= 1 for row in record["attacks"])


@pytest.mark.parametrize("secret", ["key", "owner.json"])
def test_no_public_file_holds_a_secret(run, secret):
    output, _, screen = run
    raw = WatermarkKey.load(output / "key").seed if secret == "key" else Owner.load(output / secret).private_bytes()
    forms = [raw, raw.hex().encode(), raw.hex().upper().encode(), base64.b64encode(raw).rstrip(b"=")]
    forms += [base64.urlsafe_b64encode(raw).rstrip(b"="), repr(raw).encode()]

    files = [path for path in output.rglob("*") if path.is_file()]
    public = [path for path in files if secret not in (path.name, path.parent.name)]

    assert len(public) >= 6
    for content in [*(path.read_bytes() for path in public), screen.encode()]:
        assert not any(form in content for form in forms)


def test_the_screen_shows_every_stage_and_both_tables(run):
    _, record, screen = run

    for row in record["attacks"]:
        assert screen.count(row["attack"]) >= 2, "once when done, once in the table"
    assert "unmarked twin" in screen and "False claims" in screen and "report.html" in screen


def test_an_earlier_quickstart_is_replaced_and_other_files_stay(run, tmp_path):
    made, record, _ = run
    output = shutil.copytree(made, tmp_path / "copy")
    (output / "notes.txt").write_text("mine")
    (output / "model" / "stale.txt").write_text("old")
    key = WatermarkKey.load(output / "key")

    write_output(output, record, _SavedTrainer(key), Owner.create())

    assert (output / "notes.txt").read_text() == "mine"
    assert not (output / "model" / "stale.txt").exists()


class _SavedTrainer:
    def __init__(self, key):
        self.key = key

    def save_model(self, folder):
        Path(folder).mkdir()
        (Path(folder) / "training_args.bin").write_bytes(b"pickle")


def test_a_folder_of_somebody_else_is_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")

    with pytest.raises(InvalidInput, match="holds files that no quickstart made"):
        run_quickstart(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_and_a_model_folder_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match="is a file"):
        run_quickstart(tmp_path / "file")

    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="inside a model folder"):
        run_quickstart(tmp_path / "new")


def test_the_report_escapes_hostile_text_and_asks_nothing_of_the_network(run):
    _, record, _ = run
    hostile = "<script>alert('$x^2$')</script>&\"'"
    text = json.dumps(record).replace("weight noise", json.dumps(hostile)[1:-1])
    edited = json.loads(text)
    edited["title"] = edited["forgeries"][0]["attempt"] = hostile
    edited["forgeries"][0]["remarks"] = [hostile]

    page = render_report(edited)

    assert "<script" not in page and "alert(" in page
    assert not re.search(r"https?://|//[a-z]|url\((?!#)|src=|@import|javascript:", page)
    assert page.count("<svg") == page.count("</svg>") == 4


def test_ids_in_the_report_are_unique_and_every_reference_resolves(run):
    _, record, _ = run

    page = render_report(record)

    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)


def test_the_report_states_what_removed_the_mark(run):
    _, record, _ = run
    clean = record["twin"]["row"]["accuracy"]
    removed = [
        row["attack"]
        for row in record["attacks"]
        if row["verdict"] != "mark found" and row["accuracy"] >= USABLE * clean
    ]

    assert ", ".join(removed) in render_report(record)


def test_the_marker_names_its_maker(run):
    assert "quickstart" in (run[0] / MARKER).read_text()
