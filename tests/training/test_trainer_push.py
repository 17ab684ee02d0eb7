"""`trainer.push_to_hub()` and pushes during training, with the real Trainer against the loopback Hub."""

import logging

import pytest
from huggingface_hub import ModelCard
from tiny import patterned_images, tiny_resnet, training_arguments
from transformers import AutoModelForImageClassification

from hf_watermark import GreedyResidualsConfig, GreedyResidualsTrainer, Owner
from hf_watermark.claims import check
from hf_watermark.publishing import Extras, Fidelity


CONFIG = GreedyResidualsConfig(bits=192, subkeys=2, group_size=16, strength=1.0)


def make(folder, owner=None, key=None, **arguments):
    fields = {"max_steps": 60, "hub_model_id": "me/model"}
    return GreedyResidualsTrainer(
        model=tiny_resnet(),
        args=training_arguments(folder, **fields | arguments),
        train_dataset=patterned_images(200),
        watermark=CONFIG,
        owner=owner or (None if key else Owner.create()),
        key=key,
    )


def test_push_to_hub(hub, tmp_path):
    trainer = make(tmp_path / "model")
    trainer.train()
    trainer.push_to_hub(extras=Extras(fidelity=Fidelity.of("patterns", 0.9, 0.91)), tags=["birds"], dataset="patterns")
    assert [commit.title for commit in hub.repos["models", "me/model"].commits] == [
        "initial commit",
        "End of training",
    ]
    assert set(hub.files("me/model")) == {
        "README.md", "config.json", "model.safetensors", "watermark/precommit.json", "watermark/statement.json",
        "watermark/subkey0.json",
    }  # fmt: skip
    report = check("me/model", public_key=trainer.key.public_key.hex())
    assert report.reached == "V1" and str(report["V3"].outcome) == "passed"
    card = ModelCard.load("me/model")
    assert {"birds", "generated_from_trainer", "hf-watermark"} <= set(card.data.tags)
    assert "Training procedure" in card.text and "## Watermark" in card.text
    AutoModelForImageClassification.from_pretrained("me/model")


@pytest.mark.parametrize("place", ["in the folder", "on the Hub"])
def test_a_card_that_people_wrote_stays(hub, tmp_path, place):
    trainer = make(tmp_path / "model", max_steps=40)
    text = "---\ntags: [ours]\n---\n# Ours\n"
    if place == "on the Hub":
        hub.add_repo("me/model", {"README.md": text})
    else:
        (tmp_path / "model" / "README.md").write_text(text)
    trainer.train()
    trainer.push_to_hub()
    text = hub.files("me/model")["README.md"].decode()
    assert "# Ours" in text and "- ours" in text and "## Watermark" in text


def test_a_resumed_owner_signs_too(hub, tmp_path, caplog):
    owner = Owner.create()
    key = make(tmp_path / "plan", owner=owner).key
    trainer = make(tmp_path / "model", key=key)
    trainer.train()
    with caplog.at_level(logging.WARNING):
        trainer.push_to_hub()
    assert "published without a statement: no `owner=` signs it" in caplog.text
    assert "watermark/statement.json" not in hub.files("me/model")
    future = trainer.push_to_hub(owner=owner, blocking=False)
    assert future.result().statement.statement.public_key == owner.public_key.hex()


def test_a_mark_that_cannot_be_read_back_is_not_claimed(hub, tmp_path, caplog):
    trainer = make(tmp_path / "model", max_steps=1)
    trainer.train()
    with caplog.at_level(logging.WARNING):
        assert trainer.push_to_hub().statement is None
    assert "the mark was not read back" in caplog.text
    assert set(hub.files("me/model")) == {"README.md", "config.json", "model.safetensors", "watermark/precommit.json"}


def test_pushes_during_training(hub, tmp_path):
    trainer = make(tmp_path / "model", push_to_hub=True, save_strategy="steps", save_steps=20, hub_always_push=True)
    trainer.train()
    trainer.save_model()  # with `push_to_hub=True` this pushes as well
    commits = hub.repos["models", "me/model"].commits
    assert {"initial commit", "Training in progress, step 20", "Model save"} <= {commit.title for commit in commits}
    for commit in commits[1:]:
        names = set(commit.files)
        assert {"config.json", "model.safetensors", "watermark/precommit.json"} <= names
        assert not [name for name in names if name.endswith((".bin", ".pt", ".pth"))]
    assert not list((tmp_path / "model").glob("_push*")) and not list((tmp_path / "model").rglob("training_args.bin"))
    assert check("me/model").reached == "V1"
    for blob in hub.uploads.values():
        assert trainer.key.seed not in blob


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_strategies_that_publish_pickles_are_refused(hub, tmp_path, strategy):
    with pytest.raises(ValueError, match="uploads pickles of the training state"):
        make(tmp_path / "model", push_to_hub=True, hub_strategy=strategy)
