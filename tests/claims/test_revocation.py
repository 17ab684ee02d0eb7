"""A revoked key (PROTOCOL.md §2.11): what its owner can claim no more, and what stays."""

import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from commands import refused, run
from shops import write_files

from hf_watermark import InvalidInput, Owner, Verdict
from hf_watermark.claims import Disclosure, Outcome, check, judge, verify_claim
from hf_watermark.publishing import Precommit
from hf_watermark.publishing.publication import Publication
from hf_watermark.publishing.revocation import REVOCATION, Revocations, revoke


NONCE = "court-4711"
DAY = timedelta(days=1)
NOW = datetime.now(UTC)


def revocation(dated, reason, since):
    return revoke(dated.shop.owner, Precommit.of(dated.shop.key), reason, since)


def write(folder, *entries):
    (folder / REVOCATION).write_bytes(Revocations().with_(entries).to_bytes())


def ruling(dated, suspect=None, **fields):
    shop = dated.shop
    given = {"roots": dated.roots, "suspect_time": NOW + DAY, "drawn": True, "now": NOW + 9 * DAY}
    disclosure = Disclosure.make(shop.key, shop.owner, 1, NONCE)
    return judge(disclosure, suspect or shop.folder, fields.pop("statement", dated.folder), NONCE, **given | fields)


@pytest.mark.parametrize(
    ("reason", "since", "fields", "verdict", "words"),
    [
        # What was dated before stays, whenever the suspect appeared.
        ("superseded", NOW + DAY, {"suspect_time": NOW + 3 * DAY}, Verdict.FOUND, "log2 p"),
        ("superseded", NOW + DAY, {"suspect_time": None}, Verdict.FOUND, "log2 p"),
        # A statement from later on does not count.
        ("superseded", NOW - DAY, {}, Verdict.INVALID, "it does not count"),
        ("leaked", NOW - DAY, {}, Verdict.INVALID, "it does not count"),
        # Nobody whom the judge trusts says that the statement is older.
        ("superseded", NOW + DAY, {"roots": []}, Verdict.INCONCLUSIVE, "--trust FILE"),
        # Whoever got hold of the key could have marked a model that appeared later.
        ("leaked", NOW + 3 * DAY, {}, Verdict.FOUND, "log2 p"),
        ("leaked", NOW + DAY, {"suspect_time": NOW + 3 * DAY}, Verdict.INVALID, "whoever had the key may have marked it"),
        ("leaked", NOW + DAY, {"suspect_time": None}, Verdict.INCONCLUSIVE, "--suspect-date"),
    ],
)  # fmt: skip
def test_what_a_revoked_key_still_proves(dated, reason, since, fields, verdict, words):
    result = ruling(dated, revocations=[revocation(dated, reason, since)], **fields)
    assert result.verdict is verdict and words in result.reason, result.reason
    [step] = [step for step in result.steps if step.name == "revocation"]
    assert reason in step.detail and dated.shop.key.precommit.hex()[:16] in step.detail
    assert result.transcript["statement"]["revocations"] == [revocation(dated, reason, since).revocation.plain()]


def test_the_strictest_of_several_counts(dated):
    entries = [revocation(dated, "superseded", NOW + 3 * DAY), revocation(dated, "leaked", NOW + DAY / 2)]
    for given in (entries, entries[::-1], [*entries, *entries]):
        result = ruling(dated, revocations=given)
        assert result.verdict is Verdict.INVALID and "leaked" in result.reason


def test_a_published_revocation_needs_nobody_who_hands_it_in(dated, repository):
    write(repository, revocation(dated, "leaked", NOW - DAY))
    assert ruling(dated, statement=repository).verdict is Verdict.INVALID


def test_the_owner_with_his_key_is_bound_as_well(dated):
    def checked(since, **fields):
        given = {"roots": dated.roots, "suspect_time": NOW + DAY, "now": NOW + 9 * DAY} | fields
        entries = [revocation(dated, "leaked", since)]
        return verify_claim(dated.shop.folder, dated.shop.key, dated.folder, revocations=entries, **given)

    assert checked(NOW + 3 * DAY).found
    assert checked(NOW - DAY).verdict is Verdict.INVALID
    unknown = checked(NOW + 3 * DAY, suspect_time=None)
    assert unknown.verdict is Verdict.INCONCLUSIVE and unknown.reason.startswith("its owner revoked the key")


def test_a_statement_stays_signed_whatever_was_revoked(dated, repository):
    """Readers who rely on what the owner signed lose nothing: neither by a revocation that reaches back, nor by one from today."""
    before = check(repository, dated.roots, now=NOW + 9 * DAY)
    write(repository, revocation(dated, "leaked", NOW - 400 * DAY), revocation(dated, "superseded", NOW))
    after = check(repository, dated.roots, now=NOW + 9 * DAY)
    assert after.reached == before.reached == "V3" and not after.failed
    assert [item.reason for item in after.revocations] == ["leaked", "superseded"]
    assert "leaked" in after["V0"].facts["revoked"]


@pytest.fixture
def published(dated, hub):
    """The model in a repository, with everything."""
    hub.add_folder("me/model", dated.folder)
    return hub


def owner_file(dated):
    return dated.shop.keys.parent / "owner.json"


def test_revoking_in_a_repository(dated, published, tmp_path):
    options = ("--owner", owner_file(dated))
    first = Publication.read("me/model").commit
    done = run("revoke", "me/model", "--reason", "leaked", "--since", "2026-01-01T00:00:00Z", *options)
    assert (
        "published: " in done.stdout
        and "(leaked)" in done.stdout
        and "no claim by it will count any more" in done.stderr
    )
    assert (
        run("revoke", "me/model", "--reason", "superseded", "--since", "2099-01-01T00:00:00Z", *options).stderr == ""
    )
    reasons = [item.reason for item in check("me/model").revocations]
    assert reasons == ["leaked", "superseded"], "the first one stays"
    # An earlier state of the repository does not hide what was revoked since.
    assert len(check(f"me/model@{first}").revocations) == 2
    assert ruling(dated, statement=f"me/model@{first}").verdict is Verdict.INVALID
    shown = run("statement", "check", "me/model")
    assert "what was signed and dated before stays" in shown.stdout


def test_publishing_again_takes_no_revocation_out(dated, published, tmp_path):
    run("revoke", "me/model", "--reason", "leaked", "--owner", owner_file(dated))
    folder = shutil.copytree(dated.shop.folder, tmp_path / "model")
    again = ("publish", folder, "--key", dated.shop.keys, "--owner", owner_file(dated), "--repo-id", "me/model")
    run(*again)
    assert [item.reason for item in check("me/model").revocations] == ["leaked"]
    # One that lies beside the model goes along.
    (folder / "watermark").mkdir(exist_ok=True)
    write(folder, revocation(dated, "superseded", NOW))
    run(*again)
    assert sorted(item.reason for item in check("me/model").revocations) == ["leaked", "superseded"]


def test_revoking_in_a_folder_and_in_a_file(dated, repository, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_watermark.cli.judge.confined", lambda work, arguments, *_: work(**arguments))
    options = ("--reason", "superseded", "--owner", owner_file(dated))
    run("revoke", repository, *options)
    assert [item.reason for item in check(repository).revocations] == ["superseded"]
    file = tmp_path / "revocation.json"
    run("revoke", dated.folder, *options, "--since", "2026-01-01T00:00:00Z", "--output", file)
    assert not (dated.folder / REVOCATION).exists()
    opening = tmp_path / "opening.json"
    opening.write_text(json.dumps(Disclosure.make(dated.shop.key, dated.shop.owner, 1, NONCE).to_dict()))
    claim = ("--suspect", dated.shop.folder, "--nonce", NONCE, "--revocation", file)
    done = run("judge", "--opening", opening, "--statement", dated.folder, *claim, "--json", status=4)
    assert "its owner revoked the key" in json.loads(done.stdout)["reason"]
    done = run(
        "verify", dated.shop.folder, "--key", dated.shop.keys, "--statement", dated.folder, "--revocation", file, status=4,
    )  # fmt: skip
    assert "its owner revoked the key" in " ".join(done.stdout.split())
    alone = refused("verify", dated.shop.folder, "--key", dated.shop.keys, "--revocation", file)
    assert "give --statement as well" in alone
    assert "revoked: " in run("statement", "check", dated.folder, "--revocation", file).stdout
    both = (
        "--opening-a",
        opening,
        "--statement-a",
        dated.folder,
        "--opening-b",
        opening,
        "--statement-b",
        dated.folder,
    )
    done = run("dispute", *both, *claim, "--json", status=4)
    assert json.loads(done.stdout)["verdict"] == "no finding"


def test_what_the_command_refuses(dated, repository, tmp_path):
    options = ("--reason", "leaked", "--owner", owner_file(dated))
    with pytest.warns(UserWarning, match="without a passphrase"):
        Owner.create().save(tmp_path / "other.json")
    error = refused("revoke", repository, "--reason", "leaked", "--owner", tmp_path / "other.json")
    assert "only who committed to it can revoke it" in error
    assert "--since '31.12.'" in refused("revoke", repository, *options, "--since", "31.12.")
    assert "has no watermark/precommit.json" in refused("revoke", dated.shop.folder, *options)
    (repository / REVOCATION).write_text("{}")
    assert "watermark/revocation.json: " in refused("revoke", repository, *options)
    assert check(repository)["V0"].outcome is not Outcome.PASSED


def test_an_owner_without_dates_is_told_what_he_loses(shop, tmp_path):
    folder = shutil.copytree(shop.folder, tmp_path / "model")
    write_files(folder, {"watermark/precommit.json": Precommit.of(shop.key).to_bytes()})
    done = run("revoke", folder, "--reason", "superseded", "--owner", shop.keys.parent / "owner.json")
    assert "no claim with this key will count any more" in done.stderr


def test_dates_that_do_not_exist(dated):
    document = revocation(dated, "leaked", NOW).plain()
    document["revocation"]["since"] = "2026-02-31T00:00:00Z"
    with pytest.raises(InvalidInput, match="a date that does not exist"):
        Revocations.parse(json.dumps({"schema": "hf-watermark/revocation/v1", "entries": [document]}).encode())
