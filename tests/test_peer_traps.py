"""Defects seen in other watermarking projects (peers.md 7), each as a regression test of ours. The number is the number there."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from fractions import Fraction
from math import comb, log2
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import hf_watermark
from hf_watermark import Evidence, Suspect, Verdict, WatermarkKey, verify
from hf_watermark.mapping import METHODS, AutoVerifier
from hf_watermark.statistics import binomial_min_matches, log2_binomial_tail


PACKAGE = Path(hf_watermark.__file__).parent
ROOT = PACKAGE.parent
SOURCES = sorted(PACKAGE.rglob("*.py"))


def test_trap_1_matches_are_counted_against_the_key_not_against_the_owner(marked_by):
    # A suspect that copies every wrong answer of the owner's unmarked twin agrees with the owner, and matches nothing.
    marked = marked_by("function_coupled")
    [claim] = marked.key.claims()
    verifier, [subkey] = AutoVerifier.for_method("function_coupled")(claim), claim.subkeys
    observation = verifier.observe(Suspect.open(marked.model), subkey)
    targets = torch.tensor([rule.target for rule in verifier.rules(subkey)])
    evidence = verifier.score(observation, subkey)
    assert evidence.matches == int((observation.labels == targets[:, None]).sum())
    assert verifier.score(observation, subkey.decoy()).log2_p > -20  # same owner, same answers, other secret labels


def test_trap_2_binomials_are_exact_far_below_floats():
    exact = Fraction(sum(comb(2000, k) for k in range(1950, 2001)), 2**2000)
    assert log2_binomial_tail(1950, 2000) == pytest.approx(log2(exact.numerator) - log2(exact.denominator), rel=1e-12)
    assert log2_binomial_tail(5000, 5000) == -5000


def test_trap_3_the_threshold_itself_passes_and_counts_are_integers():
    least = binomial_min_matches(512, -64)
    assert log2_binomial_tail(least, 512) <= -64 < log2_binomial_tail(least - 1, 512)
    with pytest.raises(TypeError):
        log2_binomial_tail(358.9999999, 512)


def test_trap_4_p_values_need_no_fitted_normal(marked_by, make_resnet):
    # The law of the count is known: nothing that was measured on other models enters an evidence.
    evidence = verify(make_resnet(), marked_by("greedy_residuals").key)
    for part in evidence.parts:
        assert part.log2_p == log2_binomial_tail(part.matches, part.trials)


@pytest.mark.parametrize("method", METHODS)
def test_trap_5_a_match_above_zero_is_no_decision(method, marked_by, make_resnet):
    evidence = verify(make_resnet(), marked_by(method).key)
    assert evidence.matches > 0 and not evidence.found


@pytest.mark.parametrize("method", METHODS)
def test_trap_6_no_key_lies_in_a_checkpoint(method, marked_by):
    marked = marked_by(method)
    names = {path.name for path in marked.output.rglob("*")}
    assert "optimizer.pt" in names and not {"key.json", "pool.safetensors", "owner.json"} & names
    with pytest.raises(ValueError, match="lies inside a model folder"):
        marked.key.save(marked.output / "checkpoint-80" / "key", "a long enough passphrase")


def test_trap_7_the_encrypting_key_is_derived_and_never_stored(marked_by):
    document = json.loads((marked_by("greedy_residuals").key_folder / "key.json").read_text())
    assert document.keys() == {"format", "kdf", "cipher", "nonce", "commit", "ciphertext"}
    assert document["kdf"]["name"] == "argon2id"


def test_trap_8_no_trigger_is_public_by_default(marked_by):
    marked = marked_by("function_coupled")
    [claim] = marked.key.claims()
    plans = [(a.method, a.version, a.config, a.layout, len(a.subkeys)) for a in marked.key.assignments]
    [other] = WatermarkKey.create(hf_watermark.Owner.create(), plans, pool=marked.key.pool).claims()
    drawn = [AutoVerifier.for_method("function_coupled")(each).rules(each.subkeys[0]) for each in (claim, other)]
    shared = set(drawn[0]) & set(drawn[1])
    assert len(shared) < 12  # 48 of 180 questions, one of eight targets: 1.6 expected by chance


@pytest.mark.parametrize("method", METHODS)
def test_trap_9_the_model_config_knows_no_key(method, marked_by):
    marked = marked_by(method)
    text = (marked.output / "config.json").read_text() + json.dumps(marked.key.assignments[0].config)
    assert "watermark" not in (marked.output / "config.json").read_text()
    secrets = [marked.key.seed, *(subkey.secret for claim in marked.key.claims() for subkey in claim.subkeys)]
    assert not [secret for secret in secrets if secret.hex() in text]


def test_trap_10_no_module_is_hidden_from_the_repository():
    # A `keys/` line in .gitignore once hid a whole package.
    command = ["git", "-C", str(ROOT), "check-ignore", "--no-index", *map(str, SOURCES)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if done.returncode == 128:
        pytest.skip("not a git checkout")
    assert done.stdout == ""


def test_trap_11_every_import_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {"scikit-learn": "sklearn", "pillow": "PIL", "pyyaml": "yaml"}
    listed = project["dependencies"] + [item for extra in project["optional-dependencies"].values() for item in extra]
    names = [re.match(r"[A-Za-z0-9_-]+", item)[0] for item in listed]
    declared = {named.get(name, name.replace("-", "_")) for name in names} | sys.stdlib_module_names | {"hf_watermark"}
    imported = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.split(".")[0])
    assert "transformers" in imported and imported - declared == set()


def test_trap_12_every_name_of_the_readme_exists():
    text = (ROOT / "README.md").read_text()
    for names in re.findall(r"from hf_watermark import \(?([^)\n]+)", text):
        for name in names.split(","):
            assert name.strip() in hf_watermark.__all__, name
    for name in hf_watermark.__all__:
        assert getattr(hf_watermark, name) is not None


def test_trap_14_no_device_is_hard_coded():
    pattern = re.compile(r"""\.cuda\(|device\s*=\s*["']cuda|\.to\(["']cuda""")
    assert [path.name for path in SOURCES if pattern.search(path.read_text())] == []


def test_trap_15_versions_have_floors_and_no_ceilings():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11"
    assert [item for item in project["dependencies"] if not re.fullmatch(r"[a-z0-9-]+>=[0-9.]+", item)] == []


def test_trap_19_everything_in_the_table_of_attacks_can_be_made():
    from hf_watermark.attacks import ATTACKS, make_attack

    assert len(ATTACKS) >= 6
    for name, attack_class in ATTACKS.items():
        assert type(make_attack(name)) is attack_class


@pytest.mark.parametrize("method", METHODS)
def test_trap_20_random_keys_are_uniform_on_the_marked_model(method, marked_by):
    marked = marked_by(method)
    [claim] = marked.key.claims()
    verifier, subkey = AutoVerifier.for_method(method)(claim), claim.subkeys[-1]
    observation = verifier.observe(Suspect.open(marked.model), subkey)
    scores = np.array([verifier.score(observation, subkey.decoy()).log2_p for _ in range(1000)])
    assert verifier.score(observation, subkey).log2_p < -60
    for level in (0.2, 0.05, 0.01):
        passed = int((scores <= np.log2(level)).sum())
        # Exact tests are conservative, so only too many is a fault; one false alarm in 1e6 runs.
        assert stats.binom.sf(passed - 1, len(scores), level) > 1e-6, (level, passed)
    assert scores.min() > -24


def test_no_pickle_is_ever_loaded():
    forbidden = {("torch", "load"), ("pickle", "load"), ("pickle", "loads"), ("torch.hub", "load")}
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called = (ast.unparse(node.func.value), node.func.attr)
                found += [(path.name, called)] if called in forbidden else []
            if (
                isinstance(node, ast.keyword)
                and node.arg == "trust_remote_code"
                and ast.unparse(node.value) != "False"
            ):
                found.append((path.name, "trust_remote_code"))
    assert found == []


def test_no_verdict_without_a_reason():
    evidence = Evidence("m", 1, 2, -1.0, 0.0, "null", frozenset()).decide()
    assert evidence.verdict is Verdict.NOT_FOUND and evidence.reason
