"""Several owners in one line: A marked a base model, B fine-tuned it and marked it too. Each claim stands by itself."""

import shutil
from datetime import UTC, datetime, timedelta

import pytest
import torch
from client import connect
from commands import refused, run
from safetensors.torch import load_file, save_file
from server import HubServer
from shops import Dated, Shop, publish_dated, small_model, write_files
from transformers import AutoModelForImageClassification

from hf_watermark import InvalidInput, Owner, WaterMASConfig, mark_model, verify
from hf_watermark.claims import Claimant, Disclosure, check, dispute, judge
from hf_watermark.publishing import Extras, Precommit, publish
from hf_watermark.publishing.origins import origin_in
from hf_watermark.publishing.parts import Ancestor
from hf_watermark.publishing.revocation import revoke
from hf_watermark.publishing.statement import STATEMENT, Statement
from hf_watermark.serialization import canonical_json
from hf_watermark.serialization.schema import parsed


NONCE = "court-4711"
DAY = timedelta(days=1)
NOW = datetime.now(UTC)


def fine_tuned(folder, steps=20):
    """A model that went on training on a task of its own."""
    torch.manual_seed(3)
    model = AutoModelForImageClassification.from_pretrained(folder).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for _ in range(steps):
        images, labels = torch.randn(16, 1, 32, 32), torch.randint(10, (16,))
        optimizer.zero_grad()
        model(images, labels=labels).loss.backward()
        optimizer.step()
    return model.eval()


def publish_written(place, hub, base, model_id):
    """B writes WaterMAS into what he fine-tuned, and publishes without dates."""
    owner = Owner.create()
    model, key = mark_model(fine_tuned(base), WaterMASConfig(bits=256, subkeys=2), owner)
    model.save_pretrained(place / "model")
    shop = Shop(owner, key, place / "model", place / "key", verify(place / "model", key))
    extras = Extras(derived_from=[origin_in(base)])
    publish(shop.folder, model_id, key, owner, shop.read, extras)
    write_files(place / "repository", hub.files(model_id))
    return Dated(shop, place / "repository", (), [], {})


@pytest.fixture(scope="module")
def family(tmp_path_factory, dated):
    """A; B with the method of A, and with another one; C, who has nothing to do with A and says that he has."""
    place = tmp_path_factory.mktemp("lineage")
    with pytest.MonkeyPatch.context() as monkeypatch, HubServer() as server:
        connect(monkeypatch, server.url, place / "hf_home")
        named = {"derived_from": [origin_in(dated.folder)]}
        same = publish_dated(place / "same", server, "me/same", named, model=fine_tuned(dated.folder))
        other = publish_written(place / "other", server, dated.folder, "me/other")
        liar = publish_dated(place / "liar", server, "me/liar", named, seed=21)
    return {"A": dated, "same": same, "other": other, "liar": liar}


def judged(family, name, suspect, **fields):
    published = family[name]
    disclosure = Disclosure.make(published.shop.key, published.shop.owner, 1, NONCE)
    roots = [root for item in family.values() for root in item.roots]
    return judge(disclosure, suspect, published.folder, NONCE, roots, drawn=True, now=NOW + 2 * DAY, **fields)


@pytest.mark.parametrize("name", ["same", "other"])
def test_both_marks_are_read_from_the_derived_model(family, name):
    suspect = family[name].shop.folder
    for claimant in ("A", name):
        result = judged(family, claimant, suspect)
        assert result.found, result.reason
    # The fine-tuner's statement says where his model came from; that is shown, and decides nothing here.
    [step] = [step for step in result.steps if step.name == "origin"]
    assert family["A"].shop.key.precommit.hex()[:16] in step.detail and "another claim" in step.detail
    assert family["A"].shop.owner.fingerprint in step.detail
    # The base carries the first mark alone.
    assert judged(family, "A", family["A"].shop.folder).found
    assert not judged(family, name, family["A"].shop.folder).found


@pytest.mark.parametrize("name", ["same", "other"])
def test_whoever_checks_sees_both_lines(family, name):
    facts = check(family[name].folder)["V0"].facts
    owner, key = family["A"].shop.owner, family["A"].shop.key
    assert facts["made from (claimed)"] == f"{key.precommit.hex()[:16]} of {owner.fingerprint}"
    card = (family[name].folder / "README.md").read_text()
    assert f"a model with the key `{key.precommit.hex()[:16]}` of the owner `{owner.fingerprint}`" in card


def test_an_owner_who_replaces_a_key(family, tmp_path, hub):
    """A's next version has a key of its own; the first one is revoked as superseded, and still proves what it proved."""
    first = family["A"].shop
    named = {"derived_from": [origin_in(family["A"].folder)]}
    model = AutoModelForImageClassification.from_pretrained(first.folder)
    family = family | {"A2": publish_dated(tmp_path, hub, "me/model-2", named, model=model, owner=first.owner)}
    revocation = revoke(first.owner, Precommit.of(first.key), "superseded", NOW + DAY)
    for name in ("A", "A2"):
        assert judged(family, name, family["A2"].shop.folder, revocations=[revocation]).found
    [step] = [step for step in judged(family, "A2", family["A2"].shop.folder).steps if step.name == "origin"]
    assert "of the claimant itself" in step.detail


def sides(family, *names):
    for name in names:
        shop = family[name].shop
        yield Claimant(name, Disclosure.make(shop.key, shop.owner, 1, NONCE), family[name].folder, nonce=NONCE)


def settled(family, first, second, suspect):
    roots = [root for item in family.values() for root in item.roots]
    return dispute(*sides(family, first, second), suspect, roots=roots, drawn=True, now=NOW + 2 * DAY)


@pytest.mark.parametrize("name", ["same", "other"])
def test_a_dispute_tells_the_line_without_contradiction(family, name):
    result = settled(family, name, "A", family[name].shop.folder)
    assert result.upstream == ["A"] and result.conclusive
    assert result.answers["A in the suspect"] and result.answers[f"{name} in the suspect"]
    assert result.answers[f"{name} names A as its origin"] is True
    assert "A names" not in " ".join(result.answers)


def test_naming_an_origin_takes_nothing_from_it_and_gives_nothing(family):
    """C's model never saw A's: that he names A's key makes it no descendant of A, and no witness against A."""
    assert not judged(family, "A", family["liar"].shop.folder).found
    assert judged(family, "liar", family["liar"].shop.folder).found
    assert not judged(family, "liar", family["A"].shop.folder).found


def test_naming_an_origin_is_an_admission(family, tmp_path):
    """Averaged weights carry both marks, and the published models say nothing about the order; C's own statement does."""
    a, c = (load_file(family[name].shop.folder / "model.safetensors") for name in ("A", "liar"))
    for share in (0.5, 0.52, 0.48, 0.54, 0.46):
        mean = {
            name: share * a[name] + (1 - share) * c[name] if a[name].is_floating_point() else a[name] for name in a
        }
        save_file(mean, tmp_path / "model.safetensors")
        # Which mixture shows both depends on how strong the keys' marks came out.
        if all(judged(family, name, tmp_path).found for name in ("A", "liar")):
            break
    else:
        pytest.skip("no average of these two models shows both marks at level N")
    result = settled(family, "A", "liar", tmp_path)
    assert result.upstream == ["A"] and result.conclusive and result.verdict == "liar built on A: A is upstream"


def test_a_fine_tuner_who_keeps_silent_hides_nothing(family, tmp_path):
    """Freedom: what a statement leaves out. A's claim reads A's own commitment and the weights, never B's statement."""
    bare = tmp_path / "model"
    shutil.copytree(family["same"].shop.folder, bare)
    shutil.rmtree(bare / "watermark", ignore_errors=True)
    assert judged(family, "A", bare).found


def test_origins_that_make_no_sense(family, tmp_path):
    statement = check(family["same"].folder).signed.statement.plain()
    [origin] = statement["derived_from"]
    own = origin | {"precommit": statement["precommit"]}
    for origins in ([origin, origin], [own], [origin | {"precommit": f"{n:064x}"} for n in range(17)], [{}], None):
        with pytest.raises(InvalidInput, match="derived_from"):
            parsed(Statement, canonical_json(statement | {"derived_from": origins}), "statement")
    spoilt = shutil.copytree(family["A"].folder, tmp_path / "spoilt")
    raw = (spoilt / STATEMENT).read_text()
    (spoilt / STATEMENT).write_text(
        raw.replace('"level":"', '"level": "', 1).replace('"created":"2', '"created":"3', 1)
    )
    with pytest.raises(InvalidInput, match="created"):
        origin_in(spoilt)
    (spoilt / STATEMENT).write_text(raw.replace('"seeds":3', '"seeds":4', 1))
    with pytest.raises(InvalidInput, match="is not the signed statement of the key"):
        origin_in(spoilt)
    small_model().save_pretrained(tmp_path / "unmarked")
    with pytest.raises(InvalidInput, match="no key of it is known"):
        origin_in(tmp_path / "unmarked")


def test_an_origin_without_a_statement_is_named_by_its_commitment(family, tmp_path):
    folder = shutil.copytree(family["A"].folder, tmp_path / "model")
    (folder / STATEMENT).unlink()
    key = family["A"].shop.key
    expected = Ancestor(precommit=key.precommit.hex(), public_key=key.public_key.hex(), statement_sha256=None)
    assert origin_in(folder) == expected


def test_the_publish_command_names_an_origin(family, shop, tmp_path):
    options = ("--key", shop.keys, "--owner", shop.keys.parent / "owner.json", "--repo-id", "me/model", "--dry-run")
    done = run("publish", shop.folder, *options, "--derived-from", family["A"].folder)
    assert f"of the owner `{family['A'].shop.owner.fingerprint}`" in done.stdout
    assert "no key of it is known" in refused("publish", shop.folder, *options, "--derived-from", shop.folder)
