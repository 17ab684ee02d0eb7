"""Games before a judge: openings, statements and repositories that say more than is true. Every forgery is built for real."""

import hashlib
import json
import shutil
from dataclasses import replace

import pytest
import torch
from forging import NONCE, Claimant, publish_by_hand, read_statement, ruling, sign_by_hand
from safetensors.torch import load_file, save_file
from tiny import tiny_resnet

from hf_watermark import InvalidInput, Opening, Owner, Verdict, WatermarkKey, WaterMASConfig, verify
from hf_watermark.backbones import describe
from hf_watermark.claims import Disclosure, check
from hf_watermark.keys import Share
from hf_watermark.publishing.precommit import PRECOMMIT
from hf_watermark.publishing.statement import STATEMENT


@pytest.fixture
def repository(honest, tmp_path):
    """A copy of the honest claimant's repository, to be spoilt."""
    return shutil.copytree(honest.folder, tmp_path / "repository")


def edited(honest: Claimant, repository, **fields):
    """The statement with other fields, signed by its owner again: he is the forger here."""
    statement = read_statement(repository) | fields
    return sign_by_hand(repository, statement, honest.owner, (repository / PRECOMMIT).read_bytes())


def test_the_honest_claim_is_admitted(honest):
    """The control of all games on this page."""
    result = ruling(honest, honest.open(1), honest.folder)
    assert result.found and result.evidence.basis == "claim"


def test_an_innocent_suspect(honest, innocent_folder):
    """Freedom: whom to accuse."""
    assert ruling(honest, honest.open(1), innocent_folder).verdict is not Verdict.FOUND


def test_the_public_subkey_as_evidence(honest):
    """Freedom: which sub-key to open. The public one is in everybody's hands."""
    result = ruling(honest, honest.open(0), honest.folder)
    assert result.verdict is Verdict.INVALID and "is public" in result.reason


def test_an_opening_without_consent(honest):
    """Freedom: whose opening it is. A bare opening may have been copied from anywhere."""
    bare = Disclosure(honest.open(1).opening, None)
    assert ruling(honest, bare, honest.folder).verdict is Verdict.INVALID


def test_a_replayed_opening(honest):
    """Freedom: when it was opened. An opening for another dispute is a replay."""
    assert ruling(honest, honest.open(1, "court-0"), honest.folder).verdict is Verdict.INVALID


def test_a_subkey_that_was_opened_before(honest, repository):
    """Freedom: to forget an earlier dispute. The statement signs which sub-keys were opened, and for what."""
    nonces = {NONCE: True, "court-0": False}
    for nonce, counts in nonces.items():
        entry = {"subkey": 1, "nonce_sha256": hashlib.sha256(nonce.encode()).hexdigest()}
        edited(honest, repository, disclosed=[entry])
        result = ruling(honest, honest.open(1), honest.folder, statement=repository)
        assert result.found is counts, "an opening for this very dispute does not spoil itself, any other does"


def test_somebody_elses_opening(honest):
    """Freedom: to bring one's own opening to another owner's statement."""
    owner = Owner.create()
    key = WatermarkKey.create(
        owner, [("greedy_residuals", "1", a.config, a.layout, 3) for a in honest.key.assignments]
    )
    stranger = Disclosure.make(key, owner, 1, NONCE)
    assert ruling(honest, stranger, honest.folder).verdict is Verdict.INVALID


@pytest.mark.parametrize(
    "edit",
    [
        {"secret": bytes(32)},
        {"blind": bytes(32)},
        {"beacon": b"\x07" * 32},
        {"beacon_source": "a lucky number"},
        {"index": 2},
        {"subkey_digest": bytes(32)},
        {"shares": (Share(bytes(32), (0, 1, 2)),)},
        {"count": 32},
    ],
)
def test_an_edited_opening(edit, honest, innocent):
    """Freedom: every field of an opening. A secret that fits the suspect, a beacon that was searched, a shorter list of methods."""
    forged = replace(Opening.of(honest.key, 1), **edit)
    assert verify(innocent, forged).verdict is Verdict.INVALID
    assert ruling(honest, Disclosure(forged, honest.open(1).consent), honest.folder).verdict is Verdict.INVALID


def test_an_opening_with_another_model_record(honest):
    """Freedom: class names and architecture on which a suspect is run."""
    opening = Opening.of(honest.key, 1)
    context = replace(opening.context, classes=opening.context.classes[::-1])
    assert verify(honest.model, replace(opening, context=context)).verdict is Verdict.INVALID


def test_a_subkey_twice_among_the_methods_of_an_opening(honest):
    """Freedom: the shares of an opening, with a commitment of one's own to them."""
    opening = Opening.of(honest.key, 1)
    doubled = replace(opening, shares=(*opening.shares, Share(bytes(32), (1,))))
    assert any("used twice" in str(problem) for problem in doubled.problems())


def test_a_statement_that_hides_subkeys(honest, repository):
    """Freedom: what a statement lists. Fewer sub-keys would be fewer looks."""
    statement = read_statement(repository)
    statement["methods"][0]["subkeys"] = [1]
    edited(honest, repository, methods=statement["methods"], opened_subkeys=[])
    assert check(repository).failed
    assert ruling(honest, honest.open(1), honest.folder, statement=repository).verdict is Verdict.INVALID


def test_all_committed_subkeys_are_charged(honest):
    """Freedom: which sub-key to choose. Unless the judge draws one, all are charged, also those that were opened since."""
    # Twice as many, because the aligned reading is charged whether or not it is taken.
    assert ruling(honest, honest.open(1), honest.folder).looks == 2 * 3
    assert ruling(honest, honest.open(1), honest.folder, drawn=True).looks == 2


def test_a_statement_with_another_method(honest, repository):
    """Freedom: to add a method after the fact."""
    methods = read_statement(repository)["methods"]
    methods.append(methods[0] | {"spec_sha256": "11" * 32, "subkeys": [5]})
    edited(honest, repository, methods=methods)
    assert check(repository)["V0"].reasons


def test_a_statement_with_another_model_record(honest, repository):
    """Freedom: the digest of the model record."""
    edited(honest, repository, model_sha256="11" * 32)
    assert check(repository)["V0"].reasons


@pytest.mark.parametrize("fields", [{"level": "B"}, {"log2_p": -20}, {"false_positive_log2": -256}])
def test_thresholds_written_by_the_claimant(fields, honest, repository):
    """Freedom: numbers in a statement. They are computed again (B11)."""
    edited(honest, repository, **fields)
    assert check(repository)["V0"].reasons


def test_a_statement_in_another_repository(honest, repository):
    """Freedom: where a statement lies (B8)."""
    assert check(repository, repo_id="thief/model")["V0"].reasons


def test_weights_replaced_after_signing(honest, repository):
    """Freedom: the weights beside a statement."""
    other = tiny_resnet(hidden_sizes=[32, 64])
    other.save_pretrained(repository)
    assert check(repository).failed
    assert ruling(honest, honest.open(1), honest.folder, statement=repository).verdict is Verdict.INVALID


def test_two_tensors_that_change_places(honest, repository):
    """Freedom: the names of tensors; the set of them stays what it was."""
    tensors = load_file(repository / "model.safetensors")
    first, second = next(
        (one, two)
        for one in tensors
        for two in tensors
        if tensors[one].shape == tensors[two].shape and not tensors[one].equal(tensors[two])
    )
    tensors[first], tensors[second] = tensors[second], tensors[first]
    save_file(tensors, repository / "model.safetensors")
    assert "V1" in {level.name for level in check(repository).levels if level.reasons}


def test_a_claim_on_a_model_that_the_claimant_never_marked(innocent, tmp_path):
    """Freedom: to publish anything. The claimant's own model must carry the mark, else the claim is void."""
    owner = Owner.create()
    shapes = {name: tuple(tensor.shape) for name, tensor in innocent.state_dict().items()}
    layout = {"carriers": [carrier.to_dict() for carrier in describe(shapes)]}
    config = WaterMASConfig(bits=128, subkeys=2).to_dict()
    key = WatermarkKey.create(owner, [("watermas", "1", config, layout, 2)])
    folder = publish_by_hand(tmp_path / "model", innocent, key, owner)
    claimant = Claimant(owner, key, innocent, folder)
    assert ruling(claimant, claimant.open(1), folder).verdict is not Verdict.FOUND


def test_an_unmarked_control_that_is_marked(honest):
    """Freedom: the controls. A model given as unmarked that carries the mark voids the verdict."""
    result = ruling(honest, honest.open(1), honest.folder, unmarked={"public base": honest.folder})
    assert result.verdict is Verdict.INCONCLUSIVE and "control" in result.reason


def test_a_statement_without_a_field(honest, repository):
    """Freedom: what a file leaves out. What is signed is what stands in the file."""
    document = json.loads((repository / STATEMENT).read_bytes())
    for name in document["statement"]:
        fewer = {key: value for key, value in document["statement"].items() if key != name}
        (repository / STATEMENT).write_text(json.dumps(document | {"statement": fewer}))
        assert check(repository).failed, name


def test_an_opening_of_an_old_format(honest):
    """Freedom: the age of a file."""
    with pytest.raises(InvalidInput, match="could be forged"):
        Opening.from_dict(Opening.of(honest.key, 1).to_dict() | {"schema": "hf-watermark/opening/v1"})


def test_a_reference_made_from_the_suspect_before_a_judge(honest, innocent_folder):
    """Freedom: the reference. A judge takes the published model only, whose digest was checked, and asks for dates."""
    result = ruling(honest, honest.open(1), innocent_folder)
    assert result.verdict is not Verdict.FOUND
    assert torch.isfinite(torch.tensor(result.evidence.log2_p))
