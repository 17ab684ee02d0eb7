"""A marked model with its key and owner, made once, for the tests of publishing, checking and judging."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, ResNetConfig, ResNetForImageClassification, TrainingArguments

from hf_watermark import Evidence, GreedyResidualsConfig, GreedyResidualsTrainer, Owner, WatermarkKey, verify


@dataclass(frozen=True)
class Shop:
    """`folder` holds the saved model, `keys` the key; do not change them."""

    owner: Owner
    key: WatermarkKey
    folder: Path
    keys: Path
    evidence: Evidence


def small_model(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    fields: dict[str, Any] = {"num_channels": 1, "embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 1]}
    return ResNetForImageClassification(ResNetConfig(layer_type="basic", num_labels=10, **fields))


def open_shop(
    place: Path, owner: Owner | None = None, beacon: bytes | None = None, seed: int = 0, source: str = "a test"
) -> Shop:
    """Embeds three sub-keys of 256 bits by minimising the penalty alone, which takes a fraction of a second."""
    owner, model = owner or Owner.create(), small_model(seed)
    arguments = TrainingArguments(output_dir="unused", use_cpu=True, report_to="none", save_strategy="no")
    config = GreedyResidualsConfig(bits=256, group_size=32, subkeys=3, strength=1.0)
    trainer = GreedyResidualsTrainer(model=model, args=arguments, watermark=config, owner=owner)
    key = trainer.key if beacon is None else trainer.key.bind_beacon(beacon, source)
    return embed(place, owner, key, model, config)


def embed(place: Path, owner: Owner, key: WatermarkKey, model: PreTrainedModel, config: GreedyResidualsConfig) -> Shop:
    arguments = TrainingArguments(output_dir="unused", use_cpu=True, report_to="none", save_strategy="no")
    trainer = GreedyResidualsTrainer(model=model, args=arguments, watermark=config, key=key)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        trainer.watermark_loss().backward()
        optimizer.step()
    model.save_pretrained(place / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        key.save(place / "key")
        owner.save(place / "owner.json")
    evidence = verify(place / "model", key)
    assert evidence.found, evidence
    return Shop(owner, key, place / "model", place / "key", evidence)
