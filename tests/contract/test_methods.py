"""What every method in `mapping.METHODS` promises. A new method joins by its line there and a small config in `tests/conftest.py`."""

import base64
import copy
import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from hf_watermark import (
    AutoTrainer,
    AutoVerifier,
    AutoWatermarkConfig,
    Evidence,
    InvalidInput,
    Opening,
    Suspect,
    Verdict,
    WatermarkKey,
    verify,
)
from hf_watermark.evidence import Access
from hf_watermark.mapping import METHODS, AutoEmbedding
from hf_watermark.suspects import AccessError


PASSPHRASE = "a long enough passphrase"
WHITE_BOX = [method for method, entry in METHODS.items() if entry.access == "weights"]
BLACK_BOX = [method for method, entry in METHODS.items() if entry.access != "weights"]
BY_PROBABILITIES = [method for method, entry in METHODS.items() if entry.access == "probabilities"]
every_method = pytest.mark.parametrize("method", METHODS)


def sibling(key: WatermarkKey, owner) -> WatermarkKey:
    """A key of somebody else with the same parameters and the same source images."""
    plans = [(a.method, a.version, a.config, a.layout, len(a.subkeys)) for a in key.assignments]
    other = WatermarkKey.create(owner, plans, pool=key.pool, context=key.context)
    return other.bind_beacon(key.beacon, key.beacon_source)


def check(suspect, marked) -> Evidence:
    """Verification by somebody who looked the beacon up himself, so that level B is enough."""
    return verify(suspect, marked.key, beacon=marked.key.beacon)


# --- Config -----------------------------------------------------------------------------------------------------------


@every_method
def test_config_round_trip(method, small_configs, tmp_path):
    config = small_configs[method]
    document = json.loads(json.dumps(config.to_dict()))
    assert type(config).from_dict(document) == config == AutoWatermarkConfig.from_dict(document)
    config.save_pretrained(tmp_path)
    assert type(config).from_pretrained(tmp_path) == config == AutoWatermarkConfig.from_pretrained(tmp_path)


@every_method
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"secret_seed": "00"}, "unknown field 'secret_seed'"),
        ({"format_version": 2}, "format_version is 2, this library reads 1; update hf_watermark"),
        ({"format_version": None}, "format_version is None"),
        ({"subkeys": "two"}, "subkeys"),
        ({"subkeys": 0}, "`subkeys` is 0: choose 1 to 16"),
        ({"subkeys": 17}, "`subkeys` is 17"),
        ({"method": "another"}, "'another'"),
        ({"method": None}, "None"),
    ],
)
def test_strange_configs_are_refused(method, small_configs, change, message):
    document = small_configs[method].to_dict() | change
    for reader in (type(small_configs[method]), AutoWatermarkConfig):
        with pytest.raises(InvalidInput, match=message):
            reader.from_dict(document)


@every_method
def test_every_field_is_documented_and_typed(method):
    config_class = METHODS[method].load("Config")
    documented = "".join(inner.__doc__ or "" for inner in config_class.__mro__)
    for field in dataclasses.fields(config_class):
        assert field.metadata["help"].endswith("."), field.name
        assert f"{field.name} (`" in documented
        with pytest.raises(InvalidInput):
            config_class.from_dict({"method": method, "format_version": 1, field.name: object()})


@every_method
def test_what_makes_a_mark_stronger_are_fields(method):
    config = METHODS[method].load("Config")
    assert config.stronger and set(config.stronger) <= {field.name for field in dataclasses.fields(config)}


@every_method
def test_the_table_names_classes_that_belong_together(method):
    [embedding] = AutoTrainer.for_method(method).embedding_classes
    assert embedding is AutoEmbedding.for_method(method)
    verifier = AutoVerifier.for_method(method)
    assert embedding.verifier_class is verifier and verifier.config_class is METHODS[method].load("Config")
    assert embedding.method == verifier.method == method
    assert str(verifier.access) == METHODS[method].access


# --- Found, and only where it is --------------------------------------------------------------------------------------


@every_method
def test_the_marked_model_is_found_under_its_key(method, marked_by):
    marked = marked_by(method)
    evidence = check(marked.model, marked)
    assert evidence.verdict is Verdict.FOUND and evidence.log2_p <= -64
    assert marked.trainer.state.log_history[-1]["watermark_log2_p"] == marked.evidence.log2_p
    assert evidence.to_dict() == marked.evidence.to_dict()
    counted = [part for part in evidence.parts if not part.disclosed]
    assert counted
    for part in counted:
        assert part.controls["decoys"] >= 100 and "failed" not in part.controls


@every_method
def test_another_key_is_not_found(method, marked_by, owner):
    marked = marked_by(method)
    for _ in range(3):
        evidence = verify(marked.model, sibling(marked.key, owner), beacon=marked.key.beacon)
        # Where no answer can be used, nothing was seen of a mark.
    expected = Verdict.NOT_FOUND if evidence.trials else Verdict.INCONCLUSIVE
    assert evidence.verdict is expected and evidence.log2_p > -18


@every_method
def test_an_unmarked_model_is_not_found(method, marked_by, make_resnet):
    evidence = check(make_resnet(), marked_by(method))
    assert evidence.verdict is Verdict.NOT_FOUND and evidence.log2_p > -18


@every_method
def test_only_a_beacon_that_the_verifier_knows_lowers_the_bar(method, marked_by):
    marked = marked_by(method)
    looked_up, believed = check(marked.model, marked), verify(marked.model, marked.key)
    assert looked_up.bound and "level B asks for -64" in looked_up.reason
    assert not believed.bound and "level N asks for -128" in believed.reason
    assert {part.bound for part in looked_up.parts} == {True} and {part.bound for part in believed.parts} == {False}
    assert looked_up.log2_p == believed.log2_p
    with pytest.raises(InvalidInput, match="`beacon` is 08.*, the key was bound to 07"):
        verify(marked.model, marked.key, beacon=b"\x08" * 32)


@every_method
def test_binding_changes_every_subkey(method, marked_by):
    marked = marked_by(method)
    unbound = dataclasses.replace(marked.key, beacon=bytes(32), beacon_source="none")
    assert verify(marked.model, unbound).verdict is Verdict.NOT_FOUND
    with pytest.raises(InvalidInput, match="the key was bound to 00"):
        verify(marked.model, unbound, beacon=bytes(32))


@every_method
def test_verification_leaves_the_suspect_as_it_was(method, marked_by):
    model = copy.deepcopy(marked_by(method).model).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    verify(model, marked_by(method).key)
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@every_method
def test_one_opening_proves_alone(method, marked_by, tmp_path):
    marked = marked_by(method)
    index = marked.key.assignments[0].subkeys[-1]
    opening = Opening.of(marked.key, index)
    loaded = Opening.load(opening.save(tmp_path / "opening.json"), pool=opening.pool)
    evidence = verify(marked.model, loaded, beacon=loaded.beacon)
    assert evidence.verdict is Verdict.FOUND and set(evidence.details) <= {"queries", "budget"}
    assert [part.details["subkey"] for part in evidence.parts] == [index] == [evidence.subkey]


@every_method
def test_looks_are_charged(method, marked_by):
    marked = marked_by(method)
    once, often = (verify(marked.model, marked.key, looks=looks) for looks in (1, 1024))
    assert often.log2_p == pytest.approx(once.log2_p + 10) and often.looks == 1024
    with pytest.raises(ValueError, match="`looks` is 0"):
        verify(marked.model, marked.key, looks=0)


# --- The same in every place and process ------------------------------------------------------------------------------


@every_method
def test_a_key_gives_the_same_carriers_and_triggers_again(method, marked_by):
    marked = marked_by(method)
    suspect = Suspect.open(marked.model)
    readings = []
    for key in (marked.key, WatermarkKey.load(marked.key_folder, PASSPHRASE)):
        [claim] = key.claims()
        verifier = AutoVerifier.for_method(method)(claim)
        scores = [verifier.score(verifier.observe(suspect, subkey), subkey) for subkey in claim.subkeys]
        readings.append((claim.subkeys, [score.to_dict() for score in scores]))
    assert readings[0] == readings[1]


ANOTHER_PROCESS = """
import json, sys
from hf_watermark import WatermarkKey, verify
answers = {}
for method, folder, key in json.loads(sys.argv[1]):
    key = WatermarkKey.load(key, "a long enough passphrase")
    answers[method] = verify(folder, key, beacon=key.beacon).to_dict()
    answers[method]["built a model"] = "transformers.models.resnet.modeling_resnet" in sys.modules
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def in_another_process(marked_by) -> dict:
    """Evidence of a fresh process that has nothing but the saved folders. White-box methods go first."""
    jobs = [[m, str(marked_by(m).output), str(marked_by(m).key_folder)] for m in WHITE_BOX + BLACK_BOX]
    command = [sys.executable, "-c", ANOTHER_PROCESS, json.dumps(jobs)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=os.environ | {"PYTHONHASHSEED": "7"}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@every_method
def test_a_new_process_sees_the_same(method, marked_by, in_another_process):
    seen = in_another_process[method]
    built = seen.pop("built a model")
    assert seen == json.loads(marked_by(method).evidence.to_json())
    if method in WHITE_BOX:
        assert not built


# --- Access -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", WHITE_BOX)
def test_white_box_methods_need_a_file_only(method, marked_by, monkeypatch):
    marked = marked_by(method)
    monkeypatch.setattr("hf_watermark.suspects.opening.run_on_backbone", lambda *_: pytest.fail("the model was built"))
    for suspect in (marked.output, str(marked.output), marked.output / "model.safetensors"):
        assert check(suspect, marked).found
    state = {f"module.{name}": tensor for name, tensor in marked.model.state_dict().items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert check(Suspect("tensors", state, shapes), marked).found


@pytest.mark.parametrize("method", WHITE_BOX)
def test_white_box_methods_say_what_they_need(method, marked_by):
    with pytest.raises(AccessError, match="needs weights of the suspect, endpoint offers labels"):
        verify(lambda images: torch.zeros(len(images)).long(), marked_by(method).key)


@pytest.mark.parametrize("method", WHITE_BOX)
def test_white_box_methods_read_a_fraction_of_the_tensors(method, marked_by):
    marked, asked = marked_by(method), []

    class Watching(dict):
        def __getitem__(self, name):
            asked.append(name)
            return super().__getitem__(name)

    state = Watching(marked.model.state_dict())
    suspect = Suspect("tensors", state, {name: tuple(state[name].shape) for name in list(state)})
    asked.clear()
    assert check(suspect, marked).found
    assert len(set(asked)) <= 4  # two carriers and the scales behind them
    assert max(map(asked.count, asked)) <= 3  # twice for the witness


@pytest.mark.parametrize("method", BLACK_BOX)
@pytest.mark.parametrize("answer", ["labels", "probabilities", "numpy", "lists"])
def test_black_box_methods_need_a_function_only(method, marked_by, answer):
    marked = marked_by(method)

    def endpoint(images):
        with torch.no_grad():
            probabilities = marked.model(images).logits.softmax(dim=1)
        forms = {"probabilities": probabilities, "labels": probabilities.argmax(dim=1)}
        forms |= {"numpy": forms["labels"].numpy(), "lists": forms["probabilities"].tolist()}
        return forms[answer]

    if method in BY_PROBABILITIES and answer in ("labels", "numpy"):
        evidence = check(endpoint, marked)
        assert evidence.verdict is Verdict.INCONCLUSIVE and "cannot decide from labels" in evidence.reason
        assert evidence.trials == 0 and evidence.unusable == evidence.queries > 0
        return
    evidence = check(endpoint, marked)
    assert evidence.found and evidence.access == {AutoVerifier.for_method(method).access}


@pytest.mark.parametrize("method", BLACK_BOX)
def test_a_mirrored_look_undoes_mirrored_inputs(method, marked_by):
    marked = marked_by(method)

    def endpoint(images):
        with torch.no_grad():
            return marked.model(images).logits.softmax(dim=1)

    def behind_a_mirror(images):
        return endpoint(images.flip(-1))

    plain, mirror = check(endpoint, marked), check(behind_a_mirror, marked)
    again = verify(Suspect.open(behind_a_mirror).mirrored(), marked.key, looks=2, beacon=marked.key.beacon)
    assert plain.found and not mirror.found and again.found
    assert again.log2_p == plain.log2_p + 1 and again.details["queries"] == plain.details["queries"]


@pytest.mark.parametrize("method", BLACK_BOX)
def test_black_box_methods_say_what_they_need(method, marked_by):
    marked = marked_by(method)
    weights = Suspect("tensors", marked.model.state_dict(), {})
    with pytest.raises(AccessError, match=f"needs {METHODS[method].access} of the suspect, .* offers weights"):
        verify(weights, marked.key)


@pytest.mark.parametrize("method", BLACK_BOX)
def test_other_label_sets_cannot_be_read(method, marked_by):
    evidence = verify(lambda images: torch.rand(len(images), 7), marked_by(method).key)
    assert evidence.verdict is Verdict.INCONCLUSIVE and "knows 7 classes, the key was made for 10" in evidence.reason


# --- Suspects that answer nonsense ------------------------------------------------------------------------------------


NONSENSE = {
    "constant": lambda images: torch.full((len(images),), 3),
    "not a number": lambda images: torch.full((len(images), 10), float("nan")),
    "refuses": lambda images: torch.full((len(images),), -1),
    "a class that does not exist": lambda images: torch.full((len(images),), 10**9),
    "the same probabilities": lambda images: torch.full((len(images), 10), 0.1),
}


@pytest.mark.parametrize("method", BLACK_BOX)
@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_answers_are_no_evidence(method, marked_by, name):
    evidence = verify(NONSENSE[name], marked_by(method).key)
    labels_for_scores = method in BY_PROBABILITIES and NONSENSE[name](torch.zeros(1)).ndim == 1
    unusable = labels_for_scores or name in ("not a number", "refuses", "a class that does not exist")
    says_nothing = unusable or (method in BY_PROBABILITIES and name == "the same probabilities")
    assert evidence.verdict is (Verdict.INCONCLUSIVE if says_nothing else Verdict.NOT_FOUND) and evidence.log2_p > -18
    assert evidence.unusable == (evidence.queries if unusable else 0) and evidence.queries > 0
    if unusable:
        assert evidence.matches == 0 and evidence.log2_p == 0
        assert "could not be used" in evidence.reason or "cannot decide from labels" in evidence.reason


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("value", [0.0, 1.0, float("nan"), float("inf")])
def test_broken_weights_are_no_evidence(method, marked_by, value):
    marked = marked_by(method)
    model = copy.deepcopy(marked.model)
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    evidence = verify(model, marked.key)
    assert evidence.verdict in (Verdict.NOT_FOUND, Verdict.INCONCLUSIVE) and evidence.log2_p > -18
    # "Not found" is said only where the mark could have been seen.
    seen = evidence.trials > 0 and evidence.unusable == 0
    assert evidence.verdict is (Verdict.NOT_FOUND if seen else Verdict.INCONCLUSIVE)
    # Whether activations of such a net overflow depends on the processor.
    assert seen is (value == 1.0) or (value in (0.0, 1.0) and method in BLACK_BOX)


@every_method
def test_broken_weights_say_nothing(method, marked_by, tmp_path):
    marked = marked_by(method)
    model = copy.deepcopy(marked.model)
    for parameter in model.parameters():
        nn.init.constant_(parameter, float("nan"))
    model.save_pretrained(tmp_path)
    evidence = verify(tmp_path, marked.key)
    assert evidence.verdict is Verdict.INCONCLUSIVE and evidence.log2_p == 0


@every_method
def test_another_architecture_is_inconclusive_with_the_reason(method, marked_by, make_resnet, tmp_path):
    make_resnet(hidden_sizes=[8, 16]).save_pretrained(tmp_path)
    evidence = verify(tmp_path, marked_by(method).key)
    assert evidence.verdict is Verdict.INCONCLUSIVE and evidence.trials == 0
    assert "another architecture" in evidence.reason or "do not fit the owner's architecture" in evidence.reason


# --- The canary -------------------------------------------------------------------------------------------------------


def forms_of(secret: bytes) -> list[bytes]:
    """A secret as it may turn up in a file: raw, hexadecimal, base64 at every alignment, a list of numbers."""
    forms = [secret, secret.hex().encode(), secret.hex().upper().encode(), repr(secret)[2:-1].encode()]
    for offset in range(3):
        encoded = base64.b64encode(bytes(offset) + secret)
        inner = encoded[4 * (offset > 0) : -4]
        forms += [inner, inner.translate(bytes.maketrans(b"+/", b"-_"))]
    return [*forms, ",".join(map(str, secret)).encode(), ", ".join(map(str, secret)).encode()]


def secrets_of(key: WatermarkKey) -> dict[str, bytes]:
    """Everything that must stay secret. Sub-key 0 is published on purpose where others remain."""
    published = {0} if len(key.assignments[0].subkeys) > 1 else set()
    hidden = {"seed": key.seed}
    for index in set(range(key.count)) - published:
        hidden[f"leaf secret {index}"], hidden[f"leaf blind {index}"] = key.leaf(index)
    for subkey in (subkey for claim in key.claims() for subkey in claim.subkeys):
        if subkey.index not in published:
            hidden[f"sub-key {subkey.index}"] = subkey.secret
    return hidden


def leaks(content: bytes, key: WatermarkKey) -> list[str]:
    return [name for name, secret in secrets_of(key).items() if any(form in content for form in forms_of(secret))]


def test_the_canary_sings(marked_by):
    key = marked_by("greedy_residuals").key
    for form in forms_of(key.seed):
        assert leaks(b"x" + form + b"y", key) == ["seed"]
    for offset in range(3):
        assert leaks(base64.b64encode(b"abc"[:offset] + key.seed + b"tail"), key) == ["seed"]
    assert "leaf secret 5" in leaks(key.leaf(5)[0], key) and leaks(os.urandom(100_000), key) == []


@every_method
def test_training_writes_no_secret(method, marked_by):
    marked = marked_by(method)
    files = [path for path in marked.output.rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"optimizer.pt", "rng_state.pth", "trainer_state.json", "precommit.json"} <= names
    assert "log2_p" in marked.log and "loss" in marked.log
    found = {path.name: leaks(path.read_bytes(), marked.key) for path in files}
    found |= {
        "log": leaks(marked.log.encode(), marked.key),
        "config": leaks(repr(marked.trainer.args).encode(), marked.key),
    }
    found["evidence"] = leaks(verify(marked.model, marked.key).to_json().encode(), marked.key)
    assert {name: hits for name, hits in found.items() if hits} == {}


@every_method
def test_an_encrypted_key_folder_shows_no_secret(method, marked_by):
    marked = marked_by(method)
    for path in marked.key_folder.iterdir():
        assert leaks(path.read_bytes(), marked.key) == []


@every_method
def test_public_files_lie_beside_every_checkpoint(method, marked_by):
    marked = marked_by(method)
    folders = [marked.output, *marked.output.glob("checkpoint-*")]
    assert len(folders) >= 3
    for folder in folders:
        published = json.loads((folder / "watermark" / "precommit.json").read_text())
        assert published == marked.key.precommit_document()
    several = len(marked.key.assignments[0].subkeys) > 1
    assert (marked.output / "watermark" / "subkey0.json").exists() is several
    if several:
        opening = Opening.load(marked.output / "watermark" / "subkey0.json")
        assert opening.index == 0
        evidence = verify(marked.output, opening, beacon=opening.beacon)
        assert evidence.verdict is Verdict.INCONCLUSIVE and "only the public sub-key was found" in evidence.reason


def test_access_names_are_known():
    assert {entry.access for entry in METHODS.values()} <= {str(access) for access in Access}
