"""Games with revocations: by others, against others, too early, too late, or not shown. Each is signed for real."""

import json
import shutil
from datetime import UTC, datetime, timedelta

import pytest
from forging import Claimant, ruling

from hf_watermark import InvalidInput, Owner, Verdict, WatermarkKey
from hf_watermark.claims import check
from hf_watermark.publishing import Precommit
from hf_watermark.publishing.revocation import DOMAIN, REVOCATION, Revocation, Revocations, SignedRevocation, revoke
from hf_watermark.serialization import canonical_json


NOW = datetime.now(UTC)
LONG_AGO = NOW - timedelta(days=900)


@pytest.fixture
def genuine(honest: Claimant) -> SignedRevocation:
    return revoke(honest.owner, Precommit.of(honest.key), "leaked", LONG_AGO)


def signed_by(owner: Owner, honest: Claimant, **fields) -> SignedRevocation:
    """What somebody else can sign about the honest key."""
    revocation = Revocation(
        **{
            "precommit": honest.key.precommit.hex(),
            "public_key": owner.public_key.hex(),
            "since": "2020-01-01T00:00:00Z",
            "reason": "leaked",
        }
        | fields
    )
    return SignedRevocation(revocation=revocation, signature=owner.sign(revocation.to_sign).hex())


def against(honest, *entries):
    return ruling(honest, honest.open(1), honest.folder, revocations=entries)


def test_the_genuine_one_ends_the_claim(honest, genuine):
    """The control of all games on this page."""
    assert against(honest).found
    result = against(honest, genuine)
    assert result.verdict is Verdict.INVALID and "leaked" in result.reason


def test_a_thief_revokes_the_key_of_another(honest):
    """Freedom: who signs. Only the key that signed the precommit can take a claim from its owner."""
    thief = Owner.create()
    in_his_name = signed_by(thief, honest)
    in_her_name = signed_by(thief, honest, public_key=honest.owner.public_key.hex())
    assert not in_her_name.is_signed
    result = against(honest, in_his_name, in_her_name)
    assert result.found and not any(step.name == "revocation" for step in result.steps)
    assert result.report["V0"].facts["ignored revocations, not signed by the owner"] == 2
    with pytest.raises(InvalidInput, match="only who committed to it can revoke it"):
        revoke(thief, Precommit.of(honest.key), "leaked", NOW)


@pytest.mark.parametrize("field", ["precommit", "public_key", "since", "reason", "signature"])
def test_an_edited_revocation(field, honest, genuine):
    """Freedom: every field of a genuine one."""
    other = {"precommit": "11" * 32, "public_key": "11" * 32, "since": "2019-01-01T00:00:00Z", "reason": "superseded"}
    document = genuine.plain()
    if field == "signature":
        document["signature"] = "00" * 64
    else:
        document["revocation"][field] = other[field]
    entry = SignedRevocation.model_validate(document)
    assert not entry.is_signed and against(honest, entry).found


def test_the_revocation_of_another_key(honest):
    """Freedom: which key it names. One owner revokes one of two keys; the other still counts."""
    assignments = honest.key.assignments
    plans = [(item.method, item.version, item.config, item.layout, len(item.subkeys)) for item in assignments]
    other = WatermarkKey.create(honest.owner, plans)
    assert against(honest, revoke(honest.owner, Precommit.of(other), "leaked", LONG_AGO)).found


def test_another_signature_of_the_owner_is_no_revocation(honest):
    """Freedom: to reuse what the owner signed. Formats have names of their own, so no signature means two things."""
    fields = signed_by(honest.owner, honest).revocation
    without_a_name = honest.owner.sign(canonical_json(fields.plain())).hex()
    assert not SignedRevocation(revocation=fields, signature=without_a_name).is_signed
    assert DOMAIN not in (b"", *(domain for domain in other_domains()))


def other_domains():
    from hf_watermark.claims.disclosure import DOMAIN as DISCLOSURE
    from hf_watermark.claims.judgement import TRANSCRIPT_DOMAIN
    from hf_watermark.publishing.precommit import DOMAIN as PRECOMMIT
    from hf_watermark.publishing.statement import DOMAIN as STATEMENT

    return DISCLOSURE, TRANSCRIPT_DOMAIN, PRECOMMIT, STATEMENT


def test_an_owner_disowns_a_model_that_he_sold(honest, genuine, tmp_path):
    """Freedom: a date in the past. It takes the claim from him, and nothing from those who hold what he signed."""
    sold = shutil.copytree(honest.folder, tmp_path / "sold")
    before = check(sold)
    after = check(sold, revocations=[genuine])
    assert [level.outcome for level in after.levels] == [level.outcome for level in before.levels]
    assert after.revocations and not after.failed


def test_an_owner_who_backdates_a_statement(honest, genuine):
    """Freedom: the date in a statement. It is older than a revocation only by the word of somebody whom the judge trusts."""
    later = revoke(honest.owner, Precommit.of(honest.key), "superseded", NOW + timedelta(days=1))
    result = against(honest, later)
    assert result.verdict is Verdict.INCONCLUSIVE and "no trusted authority dated the statement" in result.reason


def test_an_owner_who_withholds_a_revocation(honest, genuine, tmp_path):
    """Freedom: not to show it. Whoever kept it hands it to the judge; it needs nothing but itself."""
    kept = tmp_path / "kept.json"
    kept.write_bytes(Revocations().with_([genuine]).to_bytes())
    assert REVOCATION not in check(honest.folder).publication.files
    assert against(honest, *Revocations.read(kept).entries).verdict is Verdict.INVALID


def test_an_owner_who_takes_a_revocation_back(honest, genuine):
    """Freedom: a second one, with a later date or a milder reason. The strictest counts."""
    milder = revoke(honest.owner, Precommit.of(honest.key), "superseded", NOW + timedelta(days=900))
    for entries in ((genuine, milder), (milder, genuine)):
        assert against(honest, *entries).verdict is Verdict.INVALID


def test_an_owner_who_spoils_the_file(honest, genuine, tmp_path):
    """Freedom: the bytes of the file. What cannot be read does not count as nothing."""
    folder = shutil.copytree(honest.folder, tmp_path / "model")
    whole = Revocations().with_([genuine]).to_bytes()
    spoilt = [b"", b"{}", whole[:-9], json.dumps({"schema": "other", "entries": []}).encode(), b" " * 300_000]
    spoilt.append(whole.replace(b'"entries"', b'"more":1,"entries"'))
    for raw in spoilt:
        (folder / REVOCATION).write_bytes(raw)
        assert check(folder).failed, raw[:40]
        assert ruling(honest, honest.open(1), honest.folder, statement=folder).verdict is Verdict.INVALID


def test_more_revocations_than_anybody_needs(honest):
    """Freedom: their number. Strangers can sign as many as they like."""
    with pytest.raises(InvalidInput, match="entries"):
        Revocations().with_(signed_by(Owner.create(), honest) for _ in range(65))
