"""Levels V0 to V3: what passes, and that every way of tampering is noticed, with its own words."""

import copy
import dataclasses
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from shops import small_model, write_files
from transformers import AutoModelForImageClassification

from hf_watermark import InvalidInput, Opening, Owner
from hf_watermark.claims import Outcome, check
from hf_watermark.publishing.statement import DOMAIN, SignedStatement
from hf_watermark.publishing.timestamp import token_beacon
from hf_watermark.serialization import canonical_json, named_tensors_digest, tensor_set_digest


def outcomes(report) -> list[str]:
    return [str(level.outcome) for level in report.levels]


def reasons(report) -> str:
    return "; ".join(f"{level.name}: {reason}" for level in report.levels for reason in level.reasons)


def rewrite(repository: Path, name: str, change) -> None:
    """Changes a JSON file of the repository in place."""
    path = repository / "watermark" / name
    document = json.loads(path.read_text())
    path.write_text(json.dumps(change(document) or document))


def sign_again(repository: Path, owner: Owner, **changes: Any) -> None:
    """What a dishonest *owner* can do: any statement that he likes, under a good signature; timestamps over it are lost."""

    def change(document):
        document["statement"].update(changes)
        document["signature"] = owner.sign(DOMAIN + canonical_json(document["statement"])).hex()
        document["timestamps"] = []

    rewrite(repository, "statement.json", change)


def test_everything_holds(dated):
    report = check(dated.folder, dated.roots, dated.shop.key.public_key.hex(), "me/model")
    assert outcomes(report) == ["passed"] * 4 and report.reached == "V3"
    assert report.dates.beacon == dated.shop.key.beacon and report.dates.authorities == 2
    assert report.evidence.bound and report.evidence.found
    assert report.dates.precommit < report.dates.statement
    assert check(dated.folder, dated.roots, dated.shop.owner.fingerprint).reached == "V3"
    json.dumps(report.to_dict())


def test_dates_are_claims_where_nobody_is_trusted(dated):
    report = check(dated.folder)
    assert outcomes(report) == ["passed", "passed", "open", "passed"] and report.dates.beacon is None
    assert "no authority is trusted" in reasons(report)


def test_layout_of_the_json_does_not_matter(repository, dated):
    rewrite(repository, "statement.json", lambda document: dict(reversed(document.items())))
    assert check(repository, dated.roots).reached == "V3"


# --- Tampering: every field of the statement, eight values each ------------------------------------------------------


def leaves(document: Any, path: tuple = ()) -> Iterator[tuple]:
    if isinstance(document, dict):
        for name, value in document.items():
            yield from leaves(value, (*path, name))
    elif isinstance(document, list) and document:
        for place, value in enumerate(document):
            yield from leaves(value, (*path, place))
    else:
        yield path


def fields(document: Any, path: tuple = ()) -> Iterator[tuple]:
    pairs = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for name, value in pairs:
        if isinstance(document, dict):
            yield (*path, name)
        yield from fields(value, (*path, name))


def holder(document: Any, path: tuple) -> Any:
    for part in path[:-1]:
        document = document[part]
    return document


def replaced(document: Any, path: tuple, value: Any) -> Any:
    document = copy.deepcopy(document)
    holder(document, path)[path[-1]] = value
    return document


def other_values(value: Any) -> list[Any]:
    """Eight values that are not the given one; the first of the same kind, and plausible."""
    values: list[Any] = []
    if isinstance(value, bool):
        values = [not value]
    elif isinstance(value, int):
        values = [value + 1, abs(value - 1), 0, -1, -value, 2**40, value + 2]
    elif isinstance(value, str):
        flipped = ("1" if value[-1:] == "0" else "0").join([value[:-1], ""]) if value else "x"
        values = [flipped, value[::-1], value + "0", value[:-1], "0" * len(value), value.upper(), "2020" + value[4:]]
    elif isinstance(value, list):
        values = [[0], [value], [""], [{}]]
    values += [None, "", "x", [], {}, -1, True, 3, 1.5, "\u202e", [[]], {"a": 1}]
    return [
        other
        for place, other in enumerate(values)
        if (other != value or type(other) is not type(value)) and other not in values[:place]
    ][:8]


def test_every_field_of_the_statement_eight_values_each(dated, tmp_path):
    path = tmp_path / "watermark" / "statement.json"
    path.parent.mkdir()
    document, tried, plausible, accepted = (
        json.loads((dated.folder / "watermark" / "statement.json").read_text()),
        0,
        0,
        [],
    )
    for place in leaves(document):
        value = document
        for part in place:
            value = value[part]
        others = other_values(value)
        assert len(others) == 8
        for other in others:
            tampered = replaced(document, place, other)
            path.write_text(json.dumps(tampered))
            tried += 1
            report = check(tmp_path, dated.roots)
            if place[0] == "timestamps" and report["V0"].outcome is Outcome.PASSED:
                # Outside the signature: they speak for themselves, when the dates are checked.
                for name in (
                    "watermark/precommit.json",
                    *(f"watermark/{n}.{i}.tsr" for n in ("precommit", "statement") for i in (0, 1)),
                ):
                    shutil.copy(dated.folder / name, tmp_path / name)
                report = check(tmp_path, dated.roots)
                if report["V2"].outcome is Outcome.PASSED:
                    accepted.append((place, other))
            elif report["V0"].outcome is not Outcome.FAILED:
                accepted.append((place, other))
            plausible += "signature does not fit" in reasons(report)
    assert accepted == []
    # Many of them are well-formed and stopped by nothing but the signature.
    assert tried == 8 * len(list(leaves(document))) >= 8 * 80 and plausible >= 200


def test_no_field_can_be_left_out(repository, dated):
    """Also none with a default: the file would say less than what is signed."""
    path = repository / "watermark" / "statement.json"
    document = json.loads(path.read_text())
    places = list(fields(document))
    assert ("statement", "precommit_timestamps", 1, "kind") in places and ("timestamps",) in places
    for place in places:
        tampered = copy.deepcopy(document)
        del holder(tampered, place)[place[-1]]
        path.write_text(json.dumps(tampered))
        report = check(repository, dated.roots)
        assert report["V0"].outcome is Outcome.FAILED and report.reached is None, place
        if place[-1] == "kind":
            assert f"{'.'.join(map(str, place))}: Field required" in reasons(report)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["statement"].update(model_id="me/other"), "the signature does not fit"),
        (lambda d: d.update(signature="0" * 128), "the signature does not fit"),
        (lambda d: d.pop("signature"), "signature: Field required"),
        (lambda d: d["statement"].update(comment="x"), "comment: Extra inputs are not permitted"),
        (lambda d: d["statement"].update(log2_p="-256"), "log2_p: Input should be a valid integer"),
        (lambda d: d["statement"]["weights"]["files"][0].update(path="../config.json"), r"path: String should match pattern"),
        (lambda d: d["statement"].update(architecture="resnet\u202e"), "architecture: String should match pattern"),
        (lambda d: d["statement"].update(architecture="<b>resnet</b>"), "architecture: String should match pattern"),
        (lambda d: d["statement"].update(schema="hf-watermark/statement/v0"), "schema"),
    ],
)  # fmt: skip
def test_broken_statements_are_named(repository, dated, change, words):
    rewrite(repository, "statement.json", lambda document: change(document) and None)
    report = check(repository, dated.roots)
    assert outcomes(report) == ["failed", "open", "open", "open"] and report.reached is None
    assert re.search(words, reasons(report)), reasons(report)


# --- What a dishonest owner can sign, and the reader computes again (PROTOCOL.md §1.2, B8 to B11) --------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"false_positive_log2": -200}, "it states a false-positive bound of 2^-200; level N has 2^-64"),
        ({"log2_p": -65, "level": "N"}, "claims level N, which asks for log2 p <= -128, with -65"),
        ({"level": "B", "false_positive_log2": -30, "log2_p": -20}, "claims level B, which asks for log2 p <= -64"),
        ({"beacon": "0" * 64, "level": "B", "false_positive_log2": -30}, "claims level B without a beacon"),
        ({"subkey_root": "1" * 64}, "its precommit is not the digest of key, tree and methods"),
        ({"subkey_count": 32}, "its precommit is not the digest"),
        ({"spec_sha256": "1" * 64}, "its precommit is not the digest"),
        ({"created": "2026-02-31T00:00:00Z"}, "its date 2026-02-31T00:00:00Z does not exist"),
        ({"created": "2099-01-01T00:00:00Z"}, "lies in the future"),
        ({"opened_subkeys": [9]}, "opened_subkeys names a sub-key that carries no mark"),
        ({"subkey_count": 3}, "no power of two"),
    ],
)  # fmt: skip
def test_claims_that_the_reader_computes_otherwise(repository, dated, changes, words):
    sign_again(repository, dated.shop.owner, **changes)
    report = check(repository, dated.roots)
    assert report.failed and report.reached is None and words in reasons(report)


def test_another_signer(repository, dated):
    thief = Owner.create()
    # The thief signs the copied statement with a key of his own.
    sign_again(repository, thief)
    assert "the signature does not fit" in reasons(check(repository, dated.roots))
    sign_again(repository, thief, public_key=thief.public_key.hex())
    assert "its precommit is not the digest" in reasons(check(repository, dated.roots))
    expected = check(dated.folder, dated.roots, public_key=thief.public_key.hex())
    assert "not by the expected owner" in reasons(expected) and expected.failed


def test_a_replayed_statement(dated, hub):
    """B8: everything public is copied to another repository."""
    hub.add_folder("you/copy", dated.folder)
    report = check("you/copy", dated.roots)
    assert outcomes(report)[0] == "failed" and "written for me/model, found in you/copy: this is a copy" in reasons(
        report
    )
    hub.add_folder("me/model", dated.folder)
    assert check("me/model", dated.roots).reached == "V3"
    assert "found in you/copy" in reasons(check(dated.folder, repo_id="you/copy"))


def test_history_and_branches(dated, hub):
    old = hub.add_folder("me/model", dated.folder).head.oid
    hub.add_repo("me/model", {"model.safetensors": b"broken"})
    assert check(f"me/model@{old}", dated.roots).reached == "V3"
    assert check("me/model", dated.roots)["V1"].outcome is Outcome.FAILED


# --- V1: the weights ------------------------------------------------------------------------------------------------


def weights_of(repository: Path) -> dict[str, torch.Tensor]:
    return load_file(repository / "model.safetensors")


def test_packed_differently_is_the_same_model(repository, dated):
    AutoModelForImageClassification.from_pretrained(dated.folder).save_pretrained(repository, max_shard_size="100KB")
    (repository / "model.safetensors").unlink()
    shutil.copy(dated.folder / "config.json", repository)
    report = check(repository, dated.roots)
    assert report.reached == "V3" and "packed differently" in report["V1"].facts["checked"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("swap", "under other names: they were swapped or renamed"),
        ("rename", "under other names: they were swapped or renamed"),
        ("bit", "the weights are not those of the statement"),
        ("half", "the weights are not those of the statement"),
        ("other model", "the weights are not those of the statement: another model"),
        ("extra tensor", "the weights are not those of the statement"),
        ("extra shard", "the weights are not those of the statement"),
        ("config", "config.json is not the file of the statement"),
        ("no weights", "no weights in safetensors"),
        ("pickle", "is pickled, and reading a pickle can run code"),
    ],
)  # fmt: skip
def test_other_weights(repository, dated, spoil, words):
    tensors, target = weights_of(repository), repository / "model.safetensors"
    norms = [name for name, tensor in tensors.items() if tensor.shape == (64,) and "weight" in name]
    first, second = norms[0], next(name for name in norms if not torch.equal(tensors[name], tensors[norms[0]]))
    if spoil == "swap":
        tensors[first], tensors[second] = tensors[second], tensors[first]
    elif spoil == "rename":
        tensors = {f"module.{name}": tensor for name, tensor in tensors.items()}
    elif spoil == "bit":
        tensors[first].view(torch.int32)[0] ^= 1
    elif spoil == "half":
        tensors = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    elif spoil == "other model":
        tensors = dict(small_model(seed=3).state_dict())
    elif spoil == "extra tensor":
        tensors["extra"] = torch.ones(3)
    elif spoil == "extra shard":
        save_file({"extra": torch.ones(3)}, repository / "adapter.safetensors")
        target.unlink()
    elif spoil == "config":
        (repository / "config.json").write_text("{}")
    if spoil in ("no weights", "pickle"):
        target.unlink()
        if spoil == "pickle":
            torch.save(tensors, repository / "pytorch_model.bin")
    elif spoil not in ("config", "extra shard"):
        save_file(tensors, target)
    report = check(repository, dated.roots)
    assert report["V1"].outcome is Outcome.FAILED and words in "; ".join(report["V1"].reasons)
    assert report.reached == "V0" and report.failed


# --- V2: dates (B9, B10, D11) ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("precommit.json", "watermark/precommit.json is missing: it was stripped"),
        ("precommit.0.tsr", "watermark/precommit.0.tsr is missing: a timestamp was stripped"),
        ("statement.1.tsr", "watermark/statement.1.tsr is missing: a timestamp was stripped"),
        ("subkey0.json", "watermark/subkey0.json is missing: it was stripped"),
    ],
)  # fmt: skip
def test_stripped_files(repository, dated, name, words):
    (repository / "watermark" / name).unlink()
    report = check(repository, dated.roots)
    assert report.failed and words in reasons(report)


def test_a_stripped_list_of_timestamps_shows_as_absence(repository, dated):
    rewrite(repository, "statement.json", lambda document: document.update(timestamps=[]))
    report = check(repository, dated.roots)
    assert outcomes(report) == ["passed", "passed", "open", "passed"] and report.dates.statement is None
    assert "not both timestamped, so no date is proven" in reasons(report) and report.dates.authorities == 0


@pytest.mark.parametrize("spoil", ["bit", "other message", "precommit token", "other authority", "garbage", "empty"])
def test_bad_tokens(repository, dated, spoil):
    target, statement = (
        repository / "watermark" / "statement.0.tsr",
        SignedStatement.parse((repository / "watermark" / "statement.json").read_bytes()).statement,
    )
    stranger = type(dated.authorities[0])("Stranger")
    raw = {
        "bit": target.read_bytes()[:-9] + bytes([target.read_bytes()[-9] ^ 1]) + target.read_bytes()[-8:],
        "other message": dated.authorities[0].token(b"something else"),
        "precommit token": dated.tokens["precommit.0.tsr"],
        "other authority": stranger.token(statement.to_sign),
        "garbage": b"garbage",
        "empty": b"",
    }[spoil]
    target.write_bytes(raw)
    assert "is not the timestamp that is listed: it was exchanged" in reasons(check(repository, dated.roots))

    def list_it(document):
        document["timestamps"][0]["sha256"] = hashlib.sha256(raw).hexdigest()

    rewrite(repository, "statement.json", list_it)
    report = check(repository, dated.roots)
    assert report["V2"].outcome is Outcome.FAILED
    expected = {"other message": "dates something else", "precommit token": "dates something else", "garbage": "not a timestamp token",
                "empty": "not a timestamp token"}  # fmt: skip
    assert expected.get(spoil, "not signed by a trusted authority, or damaged") in reasons(report)


def dates(repository: Path, dated, created: datetime, stamped: datetime | None = None) -> None:
    """The owner signs another date, and has it stamped at another time."""
    text = created.strftime("%Y-%m-%dT%H:%M:%SZ")
    sign_again(repository, dated.shop.owner, created=text)
    if stamped is not None:
        statement = SignedStatement.parse((repository / "watermark" / "statement.json").read_bytes()).statement
        raw = dated.authorities[0].token(statement.to_sign, stamped)
        (repository / "watermark" / "statement.0.tsr").write_bytes(raw)
        stamp = {"kind": "rfc3161", "path": "watermark/statement.0.tsr", "sha256": hashlib.sha256(raw).hexdigest()}
        rewrite(repository, "statement.json", lambda document: document.update(timestamps=[stamp]))


def test_back_dated_and_post_dated(repository, dated):
    now = datetime.now(UTC)
    dates(repository, dated, now - timedelta(days=400))
    assert "back-dated" in reasons(check(repository, dated.roots))
    dates(repository, dated, now, stamped=now - timedelta(days=10))
    assert "post-dated" in reasons(check(repository, dated.roots))
    dates(repository, dated, now - timedelta(minutes=1), stamped=now + timedelta(days=3))
    assert "is from the future" in reasons(check(repository, dated.roots))
    dates(repository, dated, now - timedelta(days=3), stamped=now)
    assert check(repository, dated.roots).reached == "V3"


def test_git_dates_count_for_nothing(dated, hub):
    """B10: a back-dated commit."""
    hub.now = datetime(2020, 1, 1, tzinfo=UTC)
    hub.add_folder("me/model", dated.folder)
    report = check("me/model", dated.roots)
    assert report.dates.precommit.year != 2020 and report.dates.statement.year != 2020


def test_beacons(repository, dated):
    # Found before the precommit: the key could have been searched until it fits.
    early = "drand:8990e7a9aaed2ffed73dbd7092123d6f289930540d7651336225dc172e51b2ce:1"
    sign_again(repository, dated.shop.owner, beacon_source=early)
    report = check(repository, dated.roots, beacon=dated.shop.key.beacon)
    assert "before the precommit" in reasons(report) and "the key could have been searched" in reasons(report)
    late = "drand:8990e7a9aaed2ffed73dbd7092123d6f289930540d7651336225dc172e51b2ce:20000000"
    sign_again(repository, dated.shop.owner, beacon_source=late)
    assert "after the statement: no mark could be made from it" in reasons(check(repository, dated.roots))
    other = token_beacon(dated.authorities[0].token(b"x"))
    assert "the key is bound to another value" in reasons(check(dated.folder, dated.roots, beacon=other))
    sign_again(repository, dated.shop.owner, beacon=other.hex(), beacon_source="rfc3161")
    assert "not the signature of a timestamp over the precommit" in reasons(check(repository, dated.roots))


def test_another_precommit(repository, dated, shop):
    write_files(repository, {"watermark/precommit.json": canonical_json(shop.key.precommit_document())})
    assert "the precommit is not the one of the statement" in reasons(check(repository, dated.roots))
    document = dated.shop.key.precommit_document()
    for field in ("public_key", "subkey_root", "spec_sha256", "precommit"):
        write_files(repository, {"watermark/precommit.json": canonical_json(document | {field: "1" * 64})})
        assert "it was edited" in reasons(check(repository, dated.roots))
    write_files(repository, {"watermark/precommit.json": canonical_json(document | {"signature": "1" * 128})})
    assert "signature over the precommit does not verify" in reasons(check(repository, dated.roots))


# --- V3: the opened sub-key ------------------------------------------------------------------------------------------


def test_wrong_subkeys(repository, dated, shop):
    def put(opening) -> str:
        write_files(repository, {"watermark/subkey0.json": canonical_json(opening.to_dict())})
        report = check(repository, dated.roots)
        assert report["V3"].outcome is Outcome.FAILED
        return reasons(report)

    key, own = dated.shop.key, Opening.of(dated.shop.key, 0)
    assert "opens sub-key 1" in put(Opening.of(key, 1))
    assert "belongs to another owner" in put(Opening.of(shop.key, 0))
    other_key = dataclasses.replace(shop.key, public_key=key.public_key)
    assert "signature over the precommit does not verify" in put(Opening.of(other_key, 0))
    assert "not in the committed tree" in put(dataclasses.replace(own, secret=bytes(32)))
    assert "not in the committed tree" in put(dataclasses.replace(own, blind=bytes(32)))
    assert "not in the committed tree" in put(dataclasses.replace(own, path=own.path[::-1]))
    assert "wrong length" in put(dataclasses.replace(own, path=own.path[:-1]))
    assert "bound to another beacon" in put(dataclasses.replace(own, beacon=bytes(32), beacon_source="none"))
    config = dict(own.assignment.config, margin=0.2)
    assert "parameters are not the committed ones" in put(
        dataclasses.replace(own, assignment=dataclasses.replace(own.assignment, config=config))
    )


def test_a_statement_over_a_model_without_the_mark(repository, dated):
    """The owner signs a statement for a model that does not carry his mark."""
    small_model(seed=3).save_pretrained(repository)
    tensors = weights_of(repository)
    statement = json.loads((repository / "watermark" / "statement.json").read_text())["statement"]
    raw = {name: (repository / name).read_bytes() for name in ("config.json", "model.safetensors")}
    files = [
        {"path": name, "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in raw.items()
    ]
    weights = statement["weights"] | {"files": files, "named_tensors_sha256": named_tensors_digest(tensors),
                                      "tensor_set_sha256": tensor_set_digest(tensors)}  # fmt: skip
    sign_again(repository, dated.shop.owner, weights=weights)
    report = check(repository, dated.roots)
    assert report["V1"].outcome is Outcome.PASSED and report["V3"].outcome is Outcome.FAILED
    assert "sub-key 0 on the published model: not found" in reasons(report)


def test_sources_that_are_none(hub, tmp_path):
    (tmp_path / "empty").mkdir()
    assert outcomes(check(tmp_path / "empty"))[0] == "open"
    with pytest.raises(InvalidInput, match="no such folder, and no name of a repository"):
        check(tmp_path / "nothing")
    with pytest.raises(InvalidInput, match="no such folder"):
        check("one/two/three")
    hub.add_repo("you/gated", {"a": "b"}, gated=True)
    assert check("you/gated")["V0"].outcome is Outcome.OPEN
    hub.add_repo("you/claims", {"watermark/statement.json": "{}"}, gated=True)
    assert "is gated; ask for access" in reasons(check("you/claims"))
