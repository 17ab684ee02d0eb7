"""B9: one history shown in two ways, and what a reader can find out about it."""

import json
from itertools import count

import pytest
from commands import refused, run
from shops import write_files

from hf_watermark import InvalidInput
from hf_watermark.claims import Disclosure, judge
from hf_watermark.claims.sightings import NOTHING, contradictions, note_sighting, read_sightings
from hf_watermark.publishing import Extras, Fidelity, publish


@pytest.fixture
def push(hub, shop):
    """Publishes again, each time with another claim: two statements of one second would otherwise be the same."""
    numbers = count()

    def push(by=shop):
        extras = Extras(fidelity=Fidelity.of("digits", 0.9 + next(numbers) / 100))
        return publish(by.folder, "me/model", by.key, by.owner, by.read, extras).statement

    return push


def test_an_honest_history_contradicts_nothing(push, tmp_path):
    first, second, third = push(), push(), push()
    assert second.statement.supersedes == first.statement.digest
    seen = tmp_path / "seen.json"
    # The second one was missed, the third seen twice.
    assert [note_sighting(seen, signed) for signed in (first, third, third)] == [[], [], []]
    assert read_sightings(seen).statements == [first, third]
    assert contradictions([second], [first, third]) == []


def test_a_split_view_is_seen_by_one_reader_and_by_two(hub, push, tmp_path):
    """The owner shows one reader this, another one that: he takes back a statement and signs another in its place."""
    push()
    history = hub.repos["models", "me/model"].commits
    kept = len(history)
    run("statement", "check", "me/model", "--seen", tmp_path / "friend.json")
    push()
    run("statement", "check", "me/model", "--seen", tmp_path / "mine.json")
    del history[kept:]  # a squash or a force-push
    push()
    done = run("statement", "check", "me/model", "--seen", tmp_path / "mine.json", status=1)
    assert "level V1 reached" in done.stdout, "nothing else is wrong with it"
    assert "a split view, a rewritten history, or two branches" in done.stdout
    again = json.loads(
        run("statement", "check", "me/model", "--seen", tmp_path / "mine.json", "--json", status=1).stdout
    )
    assert len(again["contradictions"]) == 1 and len(read_sightings(tmp_path / "mine.json").entries) == 2

    run("statement", "compare", tmp_path / "mine.json", tmp_path / "friend.json")
    del history[kept:]
    push()
    run("statement", "check", "me/model", "--seen", tmp_path / "friend.json")
    assert (
        "2 contradictions"
        in run("statement", "compare", tmp_path / "mine.json", tmp_path / "friend.json", status=1).stdout
    )


def test_a_repository_that_changed_hands(hub, push, other_shop, tmp_path):
    note_sighting(tmp_path / "seen.json", push())
    del hub.repos["models", "me/model"]
    [contradiction] = note_sighting(tmp_path / "seen.json", push(other_shop))
    assert "are of two owners" in contradiction and other_shop.owner.fingerprint in contradiction


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["entries"].pop(0), "entry 0 does not follow"),
        (lambda d: d["entries"].reverse(), "entry 0 does not follow"),
        (lambda d: d["entries"][0].update(date="2020-01-01T00:00:00Z"), "entry 1 does not follow"),
        (lambda d: d["entries"][0]["document"]["statement"].update(model_id="you/model"), "signature of its statement"),
        (lambda d: d["entries"][0].update(extra=1), "entries.0.extra"),
        (lambda d: d.clear(), "sightings: schema"),
    ],
)  # fmt: skip
def test_edited_files_are_refused(push, tmp_path, change, words):
    path = tmp_path / "seen.json"
    note_sighting(path, push())
    note_sighting(path, push())
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(InvalidInput, match=words):
        read_sightings(path)
    assert words in refused("statement", "compare", path, path)


def test_the_head_stands_for_all_entries(push, tmp_path):
    """Entries can be cut off at the end; whoever wrote the head down elsewhere notices."""
    path, heads = tmp_path / "seen.json", {NOTHING}
    for _ in range(3):
        note_sighting(path, push())
        heads.add(read_sightings(path).head)
    assert len(heads) == 4
    document = json.loads(path.read_text())
    del document["entries"][2:]
    path.write_text(json.dumps(document))
    assert read_sightings(path).head in heads


def test_the_dispute_record_names_the_statement(hub, push, shop, tmp_path):
    push()
    write_files(tmp_path / "model", hub.files("me/model"))
    result = judge(Disclosure.make(shop.key, shop.owner, 1, "n"), shop.folder, tmp_path / "model", "n")
    assert result.transcript["inputs"]["statement"]["sha256"] == result.report.signed.statement.digest
