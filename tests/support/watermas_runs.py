"""WaterMAS runs that `test_watermas_processes.py` compares: imported for one process, run by torchrun for two."""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from trainer_runs import arguments, build, micro_batch
from transformers import TrainingArguments

from hf_watermark import WatermarkKey, WaterMASConfig, WaterMASTrainer
from hf_watermark.methods.watermas import WaterMASEmbedding


CONFIG = WaterMASConfig(bits=96, subkeys=3, switch_in=0.0, every=2, radius=0.1)
NETS = ("resnet", "vit")
CASES = [("resnet", 1, "fp32"), ("resnet", 2, "bf16"), ("vit", 1, "bf16"), ("vit", 2, "fp32")]


def train(net: str, accumulation: int, precision: str, key: WatermarkKey, folder: Path) -> WaterMASTrainer:
    """All micro-batches are the same four images, so an optimizer step is the same for any accumulation and process count."""
    trainer = WaterMASTrainer(
        model=build(net),
        args=arguments(
            folder,
            max_steps=4,
            gradient_accumulation_steps=accumulation,
            bf16=precision == "bf16",
            train_sampling_strategy="sequential",
            weight_decay=0.1,
            optim="sgd",
            learning_rate=0.05,
        ),
        train_dataset=micro_batch(net) * 32,
        watermark=CONFIG,
        key=key,
    )
    trainer.train()
    return trainer


def steps(trainer: WaterMASTrainer, net: str, count: int = 4) -> None:
    """The steps that `train` takes, for models that were sharded by hand."""
    trainer.current_gradient_accumulation_steps = 1
    optimizer = trainer.create_optimizer()
    items = micro_batch(net)
    batch = {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": torch.tensor([item["labels"] for item in items]),
    }
    for _ in range(count):
        trainer.training_step(trainer.model, dict(batch))
        optimizer.step()
        trainer.model.zero_grad()
        trainer.state.global_step += 1


def by_hand(net: str, key: WatermarkKey, folder: Path, shard: bool) -> WaterMASTrainer:
    model = build(net)
    if shard:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
        for module in model.modules():
            if type(module).__name__ in ("ResNetBasicLayer", "ViTLayer"):
                fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh)
    trainer = WaterMASTrainer(model=model, args=arguments(folder, max_steps=4), watermark=CONFIG, key=key)
    steps(trainer, net)
    return trainer


def seen(trainer: WaterMASTrainer) -> dict[str, torch.Tensor]:
    """Carriers and all weights, gathered."""
    whole = {
        name: (weight.full_tensor() if hasattr(weight, "full_tensor") else weight).detach().clone().contiguous()
        for name, weight in trainer.model.named_parameters()
    }
    carriers = {
        f"carriers.{n}": item.weights.read()
        for n, item in enumerate(trainer.embedding(WaterMASEmbedding).substitutions)
    }
    return {f"weight.{name}": weight for name, weight in whole.items()} | carriers


def main(folder: Path) -> None:
    """One process of two."""
    torch.set_num_threads(1)
    rank = TrainingArguments(str(folder / "out"), use_cpu=True, report_to="none").process_index
    verdicts = {}
    for net, accumulation, precision in CASES:
        key = WatermarkKey.load(folder / f"key-{net}")
        trainer = train(net, accumulation, precision, key, folder / "out")
        name = f"{net}-{accumulation}-{precision}"
        verdicts[name] = trainer.evidence.matches
        save_file(seen(trainer), folder / f"{name}-rank{rank}.safetensors")
    for net in NETS:
        trainer = by_hand(net, WatermarkKey.load(folder / f"key-{net}"), folder / "out", shard=True)
        shards = [type(weight).__name__ for weight in trainer.model.parameters()]
        verdicts[f"{net}-fsdp2"] = [trainer.verify().matches, sorted(set(shards))]
        save_file(seen(trainer), folder / f"{net}-fsdp2-rank{rank}.safetensors")
    (folder / f"verdicts-rank{rank}.json").write_text(json.dumps(verdicts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
