"""Publishing: one commit, nothing secret in it, an existing card kept, and every way in which it can go wrong."""

import base64
import json
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from shops import CERTIFICATE, small_model
from timm.models import save_for_hf
from transformers import AutoModelForImageClassification

from hf_watermark import InvalidInput, Opening, verify
from hf_watermark.claims import Outcome, check
from hf_watermark.publishing import Extras, Fidelity, HubError, PublishConflict, SecretFound, publish


FILES = {"README.md", "config.json", "model.safetensors"} | {
    f"watermark/{name}.json" for name in ("precommit", "statement", "subkey0")
}


@pytest.fixture
def copy(shop, tmp_path):
    """A folder with the marked model that a test may change."""
    folder = tmp_path / "model"
    folder.mkdir()
    for path in shop.folder.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def push(shop, folder=None, **fields):
    return publish(folder or shop.folder, "me/model", shop.key, shop.owner, shop.read, **fields)


def test_one_commit_holds_everything(hub, shop):
    result = push(shop)
    history = hub.repos["models", "me/model"].commits
    assert [commit.title for commit in history] == ["initial commit", "Publish marked model"]
    assert set(hub.files("me/model")) == FILES == set(result.files) and result.commit == history[-1].oid
    report = check("me/model")
    assert {level.name: level.outcome for level in report.levels} == {
        "V0": Outcome.PASSED, "V1": Outcome.PASSED, "V2": Outcome.OPEN, "V3": Outcome.PASSED,
    }  # fmt: skip
    assert report.reached == "V1" and not report.failed and report.evidence.found
    loaded = AutoModelForImageClassification.from_pretrained("me/model")
    assert verify(loaded, shop.key).found


def test_the_card_shows_what_the_statement_says(hub, shop):
    fidelity = Fidelity.of("digits", marked=0.9312, twin=0.9301, seeds=3)
    survival = [
        {"attack": "prune <b>80 %</b>", "accuracy": 0.91, "log2_p": -200.4, "verdict": "mark found"},
        {"attack": "prune 90 %", "accuracy": 0.46, "log2_p": -190.4, "verdict": "mark found"},
    ]
    push(shop, extras=Extras(fidelity=fidelity, survival=survival, certificates=[CERTIFICATE]))
    card = ModelCard.load("me/model")
    assert {"hf-watermark", "watermark"} <= set(card.data.tags)
    assert card.data["watermark"]["owner"] == shop.owner.fingerprint
    [result] = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("digits", "accuracy", 0.9312)
    for words in (
        "## Watermark",
        shop.owner.fingerprint,
        "2<sup>-64</sup>",
        "+0.11 points",
        "93.12 %",
        "98.50 %",
        "91.00 % | -200 | mark found |",
        "46.00 % | -190 | model ruined |",
    ):
        assert words in card.text, words
    assert "<b>" not in card.text and "statement check me/model" in card.text
    statement = json.loads(hub.files("me/model")["watermark/statement.json"])["statement"]
    assert statement["certificates"][0]["curve"][1] == {"radius": "1.0", "accuracy_bp": 0, "certified": False}


def test_an_existing_card_keeps_text_and_tags(hub, shop, copy):
    HfApi().create_repo("me/model")
    theirs = "---\ntags:\n- birds\nlicense: mit\n---\n# Birds\nOur text.\n"
    hub.add_repo("me/model", {"README.md": theirs})
    push(shop)
    card = ModelCard.load("me/model")
    assert "Our text." in card.text and {"birds", "hf-watermark"} <= set(card.data.tags) and card.data.license == "mit"
    # A second time: the section is replaced, not repeated; the folder's own card wins, tags of both stay.
    (copy / "README.md").write_text("---\ntags: [fish]\n---\n# Fish\n")
    push(shop, copy)
    card = ModelCard.load("me/model")
    assert card.text.count("## Watermark") == 1 and "# Fish" in card.text
    assert {"birds", "fish", "hf-watermark"} <= set(card.data.tags)
    push(shop)
    assert str(ModelCard.load("me/model")).count("## Watermark") == 1


def test_broken_front_matter_is_named(hub, shop, copy):
    (copy / "README.md").write_text("---\ntags: [a\n---\n# x\n")
    with pytest.raises(InvalidInput, match="README.md: its front matter cannot be read"):
        push(shop, copy)
    assert set(hub.files("me/model")) == set()


def test_a_refused_card_is_told(hub, shop):
    hub.verdict_on_yaml = ["license is unknown"]
    with pytest.raises(InvalidInput, match="license is unknown"):
        push(shop)


def test_leftovers_of_training_stay_at_home(hub, shop, copy):
    for name in (
        "training_args.bin",
        "optimizer.pt",
        "pytorch_model.bin",
        ".hidden",
        "checkpoint-3/model.safetensors",
    ):
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes(b"x")
    hub.add_repo("me/model", {"training_args.bin": b"token", "pytorch_model.bin": b"old", "vocab.txt": b"kept"})
    result = push(shop, copy)
    assert set(hub.files("me/model")) == FILES | {"vocab.txt"}
    assert result.skipped == {
        ".hidden": "hidden, or left by training",
        "checkpoint-3/model.safetensors": "hidden, or left by training",
        "optimizer.pt": "pickled",
        "pytorch_model.bin": "pickled",
        "training_args.bin": "pickled",
    }


def hidden_forms(secret: bytes) -> dict[str, bytes]:
    return {
        "raw": b"abc" + secret + b"def",
        "hex": b'{"x": "' + secret.hex().encode() + b'"}',
        "HEX": secret.hex().upper().encode(),
        "base64": base64.b64encode(secret),
        "base64 in the middle": base64.b64encode(b"x" + secret + b"tail"),
        "base64 url": base64.urlsafe_b64encode(b"xy" + secret),
        "at the end of a large file": bytes(9 * 2**20) + secret,
        "across two blocks": bytes(8 * 2**20 - 10) + secret,
    }


@pytest.mark.parametrize("form", hidden_forms(b"x"))
@pytest.mark.parametrize("secret", ["seed", "leaf", "sub-key", "owner"])
def test_a_secret_in_any_file_aborts(hub, shop, copy, form, secret):
    values = {
        "seed": shop.key.seed,
        "leaf": shop.key.leaf(2)[1],
        "sub-key": shop.key.claims()[0].subkeys[1].secret,
        "owner": shop.owner.private_bytes(),
    }
    (copy / "notes.txt").write_bytes(hidden_forms(values[secret])[form])
    with pytest.raises(SecretFound, match=r"notes.txt: holds the .*nothing was uploaded") as caught:
        push(shop, copy)
    assert values[secret].hex() not in str(caught.value)
    assert hub.requests == []


def test_secrets_in_metadata_and_key_files_abort(hub, shop, copy):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"note": shop.key.seed.hex()}))
    with pytest.raises(SecretFound, match="config.json: holds the seed"):
        push(shop, copy)
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "my-identity.json").write_bytes((shop.folder.parent / "owner.json").read_bytes())
    with pytest.raises(SecretFound, match="my-identity.json: holds (an owner file|a secret file)"):
        push(shop, copy)
    (copy / "my-identity.json").rename(copy / "key.json")
    with pytest.raises(ValueError, match="is a secret inside the model folder"):
        push(shop, copy)
    (copy / "key.json").unlink()
    (copy / "README.md").write_text(f"My seed is {shop.key.seed.hex()}")
    with pytest.raises(SecretFound, match="README.md"):
        push(shop, copy)
    assert hub.count("POST", "/commit/") == 0


def test_only_sub_key_0_is_opened(hub, shop):
    push(shop)
    files = hub.files("me/model")
    opening = Opening.from_dict(json.loads(files["watermark/subkey0.json"]))
    assert opening.index == 0 and not opening.problems()
    content = b"".join(files.values())
    for subkey in shop.key.claims()[0].subkeys[1:]:
        assert subkey.secret not in content and subkey.secret.hex().encode() not in content


def test_no_claim_without_owner_or_mark(hub, shop, tmp_path):
    result = publish(shop.folder, "me/quiet", shop.key)
    assert result.statement is None and set(result.files) == {
        "config.json", "model.safetensors", "watermark/precommit.json"
    }  # fmt: skip
    small_model(seed=5).save_pretrained(tmp_path / "plain")
    lost = publish(tmp_path / "plain", "me/quiet", shop.key, shop.owner, shop.read)
    assert lost.statement is None
    assert check("me/quiet")["V0"].reasons == ("watermark/statement.json is missing: this model makes no claim",)


def test_a_lost_claim_disappears_from_the_card(hub, shop, tmp_path):
    push(shop)
    small_model(seed=5).save_pretrained(tmp_path / "plain")
    publish(tmp_path / "plain", "me/model", shop.key, shop.owner, shop.read)
    assert set(hub.files("me/model")) == {"README.md", "config.json", "model.safetensors", "watermark/precommit.json"}
    assert "## Watermark" not in hub.files("me/model")["README.md"].decode()


def test_pickles_only_are_refused(hub, shop, tmp_path):
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InvalidInput, match="pytorch_model.bin is pickled and is never published"):
        push(shop, tmp_path)
    assert hub.requests == []


def test_a_timm_export_loads_in_transformers(hub, shop, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=7, in_chans=1)
    save_for_hf(model, tmp_path, model_args={"num_classes": 7, "in_chans": 1}, safe_serialization=True)
    before = (tmp_path / "config.json").read_bytes()
    publish(tmp_path, "me/timm", shop.key)
    loaded = AutoModelForImageClassification.from_pretrained("me/timm").eval()
    images = torch.rand(1, 1, 64, 64)
    torch.testing.assert_close(loaded(pixel_values=images).logits, model.eval()(images))
    assert (tmp_path / "config.json").read_bytes() == before


def test_private_repositories(hub, shop):
    push(shop, private=True)
    assert hub.repos["models", "me/model"].private
    assert check("me/model").reached == "V1"
    with pytest.raises(HubError, match="does not exist, or is private.*says nothing about a mark"):
        check("me/model", token=False)


def test_foreign_repositories(hub, shop):
    hub.add_repo("you/model", {"README.md": "theirs"})
    with pytest.raises(HubError, match="the Hub refused"):
        publish(shop.folder, "you/model", shop.key, shop.owner, shop.read)


def test_another_owners_statement_stays(hub, shop, other_shop):
    push(shop)
    with pytest.raises(InvalidInput, match="carries the statement of another owner"):
        publish(other_shop.folder, "me/model", other_shop.key, other_shop.owner, other_shop.read)
    with pytest.raises(InvalidInput, match="the key belongs to another owner"):
        publish(shop.folder, "me/model", shop.key, other_shop.owner, shop.read)


def test_statements_are_chained(hub, shop):
    first, second = push(shop).statement, push(shop).statement
    assert first.statement.supersedes is None and len(second.statement.supersedes) == 64


def test_two_publishers(hub, shop):
    hub.before_commit = lambda: hub.add_repo("me/model", {"README.md": "theirs"})
    with pytest.raises(PublishConflict, match="somebody else committed to it in the meantime, so nothing was written"):
        push(shop)
    assert set(hub.files("me/model")) == {"README.md"}
    push(shop)
    assert set(hub.files("me/model")) == FILES


def folder_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("after", [False, True])
def test_an_interrupted_upload_leaves_the_old_or_the_new_commit(hub, shop, after, tmp_path):
    """The connection breaks at every request in turn, before it takes effect or before the answer comes back."""
    hub.add_repo("me/model", {"README.md": "---\ntags: [old]\n---\n# Old\n", "config.json": "{}"})
    keys, old = folder_bytes(shop.keys), hub.files("me/model")
    hub.forget()
    push(shop)
    requests, outcomes = len(hub.requests), set()
    assert requests >= 8
    for number in range(1, requests + 1):
        del hub.repos["models", "me/model"].commits[2:]
        hub.uploads.clear()
        hub.forget()
        hub.drop_at(number, after)
        try:
            push(shop)
        except (HubError, HfHubHTTPError, OSError) as error:
            assert "try again" in str(error)
        hub.forget()
        files = hub.files("me/model")
        assert files == old or set(files) == FILES and not check("me/model").failed
        outcomes.add(files == old)
        push(shop)
        assert set(hub.files("me/model")) == FILES and check("me/model").reached == "V1"
    assert outcomes == {True, False} or not after
    assert folder_bytes(shop.keys) == keys


def test_offline(hub, shop, offline):
    with pytest.raises(HubError, match="this process is offline"):
        push(shop)
    with pytest.raises(HubError, match="this process is offline"):
        check("me/model")
