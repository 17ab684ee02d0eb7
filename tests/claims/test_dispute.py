"""Two claimants over one model (PROTOCOL.md §2.9): every row of the table, and what a dishonest claimant tries."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from client import connect
from safetensors.torch import load_file, save_file
from server import HubServer
from shops import permuted, publish_dated, small_model
from transformers import AutoModelForImageClassification

from hf_watermark import InvalidInput
from hf_watermark.claims import Claimant, Disclosure, check, dispute
from hf_watermark.evaluation.judgement_report import render_dispute


NONCE = "court-4711"
DAY = timedelta(days=1)
NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def family(tmp_path_factory, dated):
    """
    X's published model; Y who built on it and published with a mark of his own; W who did the same, reordered the channels, and sealed an
    original that has nothing to do with it; Z who is unrelated.
    """
    place = tmp_path_factory.mktemp("family")
    small_model(seed=77).save_pretrained(place / "unrelated")
    with pytest.MonkeyPatch.context() as monkeypatch, HubServer() as server:
        connect(monkeypatch, server.url, place / "hf_home")

        def built_on_x(folder):
            return AutoModelForImageClassification.from_pretrained(folder)

        sealed = {"original": place / "unrelated"}
        y = publish_dated(place / "y", server, "me/overwritten", sealed, model=built_on_x(dated.folder))
        reordered = permuted(dated.folder, place / "reordered")
        w = publish_dated(place / "w", server, "me/reordered", sealed, NOW + DAY / 4, model=built_on_x(reordered))
        z = publish_dated(place / "z", server, "me/unrelated", seed=21)
    return {"X": dated, "Y": y, "Z": z, "W": w, "unrelated": place / "unrelated"}


def claimant(family, name, **fields):
    shop = family[name].shop
    return Claimant(name, Disclosure.make(shop.key, shop.owner, 1, NONCE), family[name].folder, nonce=NONCE, **fields)


def with_x(family):
    """A date that cannot be told from that of X's statement, whenever the fixture was made."""
    return check(family["X"].folder, family["X"].roots, now=NOW + 2 * DAY).dates.statement


def settle(family, first, second, suspect, **fields):
    roots = [root for name in "XYZW" for root in family[name].roots]
    fields = {"roots": roots, "suspect_time": NOW + DAY, "drawn": True, "now": NOW + 2 * DAY} | fields
    return dispute(first, second, suspect, **fields)


def test_only_one_mark(family):
    for order in ("XZ", "ZX"):
        result = settle(family, *(claimant(family, name) for name in order), family["X"].folder)
        assert result.upstream == ["X"] and result.conclusive
        assert result.verdict == "the suspect descends from X's mark"
        assert any(note.startswith("Z: not found") for note in result.notes)
    json.dumps(result.to_dict())


def test_one_built_on_the_other_whatever_he_sealed(family):
    """Y sealed an original that has nothing to do with his model. It is not even looked at."""
    for order in ("XY", "YX"):
        sides = [claimant(family, name, original=family["unrelated"] if name == "Y" else None) for name in order]
        result = settle(family, *sides, family["Y"].folder)
        assert result.answers == {
            "X in the suspect": True, "Y in the suspect": True, "X in the published model of Y": True, "Y in the published model of X": False,
        }  # fmt: skip
        assert result.upstream == ["X"] and result.conclusive and "Y built on X" in result.verdict


def test_reordering_channels_does_not_help(family):
    """W's published model carries X's mark under reordered channels; the date of W's model decides whether X's model is a reference."""
    sealed = {"original": family["unrelated"]}
    unmarked = {"base": small_model()}
    result = settle(
        family, claimant(family, "X"), claimant(family, "W", **sealed), family["W"].folder, unmarked=unmarked
    )
    assert result.answers["X in the published model of W"] and not result.answers["W in the published model of X"]
    assert result.upstream == ["X"] and result.conclusive
    # If W's model may be as old as X's statement, X's model is no reference for it, and nobody wins.
    early = claimant(family, "W", first_seen=with_x(family), **sealed)
    open_ = settle(family, claimant(family, "X", start=small_model()), early, family["W"].folder)
    assert open_.upstream == ["X"] and open_.conclusive  # the model that X's key was made for needs no date
    open_ = settle(family, claimant(family, "X"), early, family["W"].folder, unmarked=unmarked)
    assert not open_.conclusive and sorted(open_.upstream) == ["W", "X"]
    assert any("not safely earlier" in note for note in open_.notes)


def test_a_wrong_start_leaves_it_open(family, tmp_path):
    """X's mark is in the suspect under reordered channels, and what X delivers as the model before the mark is another one."""
    reordered = permuted(family["X"].folder, tmp_path / "suspect")
    wrong = claimant(family, "X", start=family["unrelated"])
    result = settle(family, wrong, claimant(family, "Z"), reordered)
    assert result.upstream == [] and not result.conclusive
    assert "whether the suspect carries X's mark stays open" in result.verdict
    assert "<b>Inconclusive</b>" in render_dispute(result.to_dict(), "suspect")
    right = settle(family, claimant(family, "X", start=small_model()), claimant(family, "Z"), reordered)
    assert right.upstream == ["X"] and right.conclusive


def test_an_unrelated_original_never_helps_its_owner(family):
    """Where the published models decide nothing, W's original is looked at. That X's mark is not in it proves nothing."""

    def against(original):
        sides = claimant(family, "X"), claimant(family, "W", original=original, first_seen=with_x(family))
        return settle(family, *sides, family["W"].folder, unmarked={"base": small_model()})

    delivered = against(family["unrelated"])
    assert delivered.answers["X in the original of W"] is False and not delivered.conclusive
    # Withholding what he committed to counts against him.
    withheld, exchanged = against(None), against(family["Z"].folder)
    assert withheld.answers["X in the original of W"] is True and withheld.upstream == ["X"]
    assert exchanged.upstream == ["X"] and any("not what its statement commits to" in note for note in exchanged.notes)


def test_what_nobody_committed_to_is_not_read(family):
    forged = claimant(family, "X", original=family["Z"].folder)
    result = settle(family, forged, claimant(family, "Z", original=family["Z"].folder), _merged(family))
    assert not result.conclusive and "Y in the original of X" not in result.answers
    assert len([note for note in result.notes if "commits to no original" in note]) == 2


def _merged(family):
    x, z = (load_file(family[name].folder / "model.safetensors") for name in "XZ")
    mean = {name: (x[name] + z[name]) / 2 if x[name].is_floating_point() else x[name] for name in x}
    folder = family["unrelated"].parent / "merged"
    folder.mkdir(exist_ok=True)
    save_file(mean, folder / "model.safetensors")
    return folder


def test_a_merge_of_both(family):
    """Averaged weights carry both marks; neither published model carries the other's."""
    result = settle(family, claimant(family, "X"), claimant(family, "Z"), _merged(family))
    assert not result.conclusive and sorted(result.upstream) == ["X", "Z"] and "merges both" in result.verdict


def test_a_model_that_is_older_than_a_mark_cannot_carry_it(family):
    """X's model was seen long before Y's key was committed: Y's mark is not even looked for in it."""
    early = claimant(family, "X", first_seen=with_x(family) - 300 * DAY)
    result = settle(family, early, claimant(family, "Y"), family["Y"].folder)
    assert result.answers["Y in the published model of X"] is False and result.upstream == ["X"]
    assert any("cannot descend from it" in note for note in result.notes)


def test_no_finding(family, tmp_path):
    small_model(seed=31).save_pretrained(tmp_path)
    result = settle(family, claimant(family, "X"), claimant(family, "Z"), tmp_path)
    assert result.upstream == [] and result.conclusive and result.verdict == "no finding"
    with pytest.raises(ValueError, match="name them apart"):
        settle(family, claimant(family, "X"), claimant(family, "X"), tmp_path)
    with pytest.raises(InvalidInput, match="no such folder"):
        settle(family, claimant(family, "X"), claimant(family, "Z"), tmp_path / "missing")
