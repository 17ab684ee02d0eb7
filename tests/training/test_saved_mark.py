"""What a trainer leaves beside saved weights follows from these weights, and not from what it read after training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from trainer_runs import COUPLED, arguments, build, images
from transformers import ViTConfig, ViTForImageClassification

from hf_watermark import FunctionCoupledTrainer, GreedyResidualsConfig, GreedyResidualsTrainer, Owner, verify


# Of two sub-keys one is public, and does not count.
GREEDY = GreedyResidualsConfig(bits=180, subkeys=2, group_size=16, strength=0.1)


def trained(folder: Path, model: Any = None, **fields: Any) -> GreedyResidualsTrainer:
    trainer = GreedyResidualsTrainer(
        model=build("resnet") if model is None else model,
        args=arguments(folder, **{"max_steps": 30} | fields),
        train_dataset=images(60),
        watermark=GREEDY,
        owner=Owner.create(),
    )
    trainer.train()
    return trainer


def published(folder: Path) -> list[str]:
    return sorted(file.name for file in (folder / "watermark").iterdir())


def test_replaced_weights_open_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """https://github.com/Lightning-AI/pytorch-lightning/issues/20545: an average, or the weights of another run, put in after training."""
    trainer = trained(tmp_path / "model")
    trainer.save_model()
    assert trainer.evidence.found and published(tmp_path / "model") == ["precommit.json", "subkey0.json"]
    (tmp_path / "model" / "watermark" / "statement.json").write_text("{}")
    trainer.model.load_state_dict(build("resnet").state_dict())
    for folder in (tmp_path / "model", tmp_path / "other"):
        caplog.clear()
        trainer.save_model(str(folder))
        assert published(folder) == ["precommit.json"]
        assert "was in the model after training, but it cannot be read from" in caplog.text


def test_a_net_that_cannot_be_asked_from_its_files_opens_nothing(tmp_path: Path):
    model = Bare(build("resnet"))
    model.config = model.net.config
    trainer = FunctionCoupledTrainer(
        model=model,
        args=arguments(tmp_path / "model", max_steps=1),
        train_dataset=images(250),
        watermark=COUPLED,
        owner=Owner.create(),
    )
    trainer.train()
    trainer.save_model()
    assert published(tmp_path / "model") == ["precommit.json"]


def test_checkpoints_open_nothing(tmp_path: Path):
    """Also not those of a second training of the same trainer: its mark has not been read yet."""
    trainer = trained(tmp_path / "model", save_strategy="steps", save_steps=15)
    trainer.train()
    assert trainer.evidence.found
    for step in (15, 30):
        assert published(tmp_path / "model" / f"checkpoint-{step}") == ["precommit.json"]


def shared_layers() -> ViTForImageClassification:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "intermediate_size": 128}
    model = ViTForImageClassification(ViTConfig(**sizes, num_hidden_layers=4, num_attention_heads=2, num_labels=10))
    layers = model.vit.layers
    layers[1], layers[3] = layers[0], layers[2]
    return model


class Bare(nn.Module):
    """Not a model of transformers: its own tensors are saved by name."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, pixel_values, labels=None):
        return self.net(pixel_values, labels)


@pytest.mark.parametrize("wrap", [lambda net: net, Bare], ids=["transformers", "plain"])
def test_layers_that_share_their_weights(tmp_path: Path, wrap: Any):
    """https://github.com/huggingface/transformers/issues/30202: one name per tensor in the plan, the live model and the file."""
    trainer = trained(tmp_path / "model", wrap(shared_layers()))
    assert trainer.evidence.found
    trainer.save_model()
    assert len(load_file(tmp_path / "model" / "model.safetensors")) == len(dict(trainer.model.named_parameters()))
    assert verify(tmp_path / "model", trainer.key).found and verify(trainer.model, trainer.key).found
    assert published(tmp_path / "model") == ["precommit.json", "subkey0.json"]


def test_shared_layers_come_back_from_a_checkpoint(tmp_path: Path):
    trainer = trained(tmp_path / "model", shared_layers(), save_strategy="steps", save_steps=10, max_steps=20)
    resumed = GreedyResidualsTrainer(
        model=shared_layers(), args=trainer.args, train_dataset=images(60), watermark=GREEDY, key=trainer.key
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "model" / "checkpoint-10"))
    weights = dict(trainer.model.named_parameters())
    assert all(torch.equal(weight, weights[name]) for name, weight in resumed.model.named_parameters())
