"""Training runs in two processes that `test_sharded.py` compares: replicated by DDP, and sharded by FSDP2."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tiny import patterned_images, tiny_resnet, training_arguments
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from hf_watermark import WatermarkKey
from hf_watermark.backbones import live_weights
from hf_watermark.mapping import METHODS, AutoTrainer, AutoWatermarkConfig
from hf_watermark.training.trainer import WatermarkTrainer


STEPS = 4
WAYS = ("ddp", "fsdp2")


def sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for module in model.modules():
        if type(module).__name__ == "ResNetBasicLayer":
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(key: WatermarkKey, way: str, folder: Path) -> WatermarkTrainer:
    """
    The steps that `Trainer.train` takes. Accelerate shards a model after the trainer was made, so it is done here too. Both processes see
    the same images, each with its own triggers.
    """
    config = AutoWatermarkConfig.from_dict(key.assignments[0].config)
    trainer = AutoTrainer.for_method(config.method)(
        model=tiny_resnet().train(),
        args=training_arguments(folder, optim="sgd", learning_rate=0.05, max_steps=STEPS),
        train_dataset=patterned_images(variety=0.3),
        watermark=config,
        key=key,
    )
    wrapped = sharded(trainer.model) if way == "fsdp2" else DistributedDataParallel(trainer.model)
    trainer.current_gradient_accumulation_steps = 1
    optimizer = trainer.create_optimizer()
    for start in range(0, 40 * STEPS, 40):
        items = [trainer.train_dataset[row] for row in range(start, start + 40)]
        batch = {
            "pixel_values": torch.stack([item["pixel_values"] for item in items]),
            "labels": torch.tensor([item["labels"] for item in items]),
        }
        trainer.training_step(wrapped, batch)
        optimizer.step()
        wrapped.zero_grad()
        trainer.state.global_step += 1
    return trainer


def main(folder: Path) -> None:
    """One process of two."""
    torch.set_num_threads(1)
    rank = training_arguments(folder).process_index
    facts = {}
    for method in METHODS:
        key = WatermarkKey.load(folder / "keys" / method)
        for way in WAYS:
            trainer = train(key, way, folder / "out")
            weights = {
                name: weight.detach().clone().contiguous() for name, weight in live_weights(trainer.model).items()
            }
            save_file(weights, folder / f"{method}-{way}-rank{rank}.safetensors")
            kinds = {type(weight).__name__ for weight in trainer.model.parameters()}
            facts[f"{method}-{way}"] = {"matches": trainer.verify().matches, "kinds": sorted(kinds)}
    try:
        train(WatermarkKey.load(folder / "keys" / "masking"), "fsdp2", folder / "out")
    except ValueError as error:
        facts["masking"] = str(error)
    (folder / f"facts-rank{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
