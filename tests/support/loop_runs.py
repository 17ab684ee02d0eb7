"""
Two optimizer steps of every method in every loop of `examples/`, and in the Trainer: what the optimizer sees, and what the mark then reads. Imported for
loops in one process, and run by torchrun for those in two.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from safetensors.torch import save_file
from tiny import patterned_images, tiny_resnet, training_arguments
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader
from trainer_runs import build, images
from transformers import TrainerCallback

from hf_watermark import InvalidInput, Owner, Watermark, WatermarkKey, stack_trainers
from hf_watermark.backbones import full_parameter
from hf_watermark.mapping import METHODS, AutoTrainer, AutoWatermarkConfig


sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import loop_accelerate  # noqa: E402
import loop_plain  # noqa: E402
import loop_timm  # noqa: E402


STEPS, BATCH, RATE = 2, 20, 0.05
SMALL = {"bits": 128, "subkeys": 2, "group_size": 16}
# Of Lightning's trainer.
QUIET = {name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")}
HAS_LIGHTNING = find_spec("lightning") is not None


@dataclass
class Seen:
    """The gradients at each optimizer step, and matches and verdict at the end."""

    gradients: list[dict[str, torch.Tensor]] = field(default_factory=list)
    verdict: str = ""
    matches: int = 0

    def look(self, model: nn.Module) -> None:
        named = model.named_parameters()
        self.gradients.append({name: full_parameter(value.grad).detach().clone() for name, value in named})

    def done(self, evidence: Any) -> "Seen":
        self.verdict, self.matches = str(evidence.verdict), evidence.matches
        return self


def data() -> list[dict[str, Any]]:
    return patterned_images(variety=0.3)


def pairs() -> list[tuple[torch.Tensor, int]]:
    return [(item["pixel_values"], item["labels"]) for item in data()]


def in_the_trainer(key: WatermarkKey, folder: Path, **settings: Any) -> Seen:
    seen = Seen()

    class Look(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            seen.look(getattr(model, "module", model))

    configs = [AutoWatermarkConfig.from_dict(item.config) for item in key.assignments]
    fields = {"optim": "sgd", "learning_rate": RATE, "lr_scheduler_type": "constant", "max_grad_norm": 0}
    fields |= {"max_steps": STEPS, "per_device_train_batch_size": BATCH, "train_sampling_strategy": "sequential"}
    trainer = stack_trainers(*(AutoTrainer.for_method(config.method) for config in configs))(
        model=tiny_resnet(),
        args=training_arguments(folder, **fields | settings),
        train_dataset=data(),
        watermark=configs,
        key=key,
        callbacks=[Look()],
    )
    trainer.train()
    return seen.done(trainer.evidence)


def loop(
    train: Callable, items: Callable = data, shard: Callable = lambda model: model, accumulation: int = 1
) -> Callable:
    """A run of `train(model, watermark, optimizer, loader)`."""

    def run(key: WatermarkKey, folder: Path) -> Seen:
        seen, model = Seen(), tiny_resnet()
        watermark = Watermark(model, key=key, data=items(), steps=STEPS)
        optimizer = torch.optim.SGD(shard(model).parameters(), lr=RATE)
        optimizer.register_step_post_hook(lambda *_: seen.look(watermark.embeddings[0].model))
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        rows = [watermark.data[row] for row in range(STEPS * accumulation * BATCH * world)]
        train(model, watermark, optimizer, DataLoader(rows, BATCH))
        return seen.done(watermark.verify())

    return run


def plain(model: nn.Module, watermark: Watermark, optimizer: Any, loader: DataLoader) -> None:
    loop_plain.train(model, watermark, optimizer, loader, epochs=1)


def accelerate(model: nn.Module, watermark: Watermark, optimizer: Any, loader: DataLoader, **settings: Any) -> None:
    AcceleratorState._reset_state()  # of an earlier run, with another precision
    loop_accelerate.train(Accelerator(cpu=True, **settings), model, watermark, optimizer, loader, epochs=1)


def timm(model: nn.Module, watermark: Watermark, optimizer: Any, loader: DataLoader) -> None:
    watermark.watch(optimizer)
    bare = model.forward
    model.forward = lambda images: bare(images).logits  # type: ignore[method-assign]
    ema = loop_timm.ModelEmaV3(model)
    loss_fn = nn.CrossEntropyLoss()
    loop_timm.train_one_epoch(0, model, watermark, loader, optimizer, loss_fn, model_ema=ema, clip_grad=1e6)
    del model.forward


def lightning(model: nn.Module, watermark: Watermark, optimizer: Any, loader: DataLoader) -> None:
    import lightning
    import loop_lightning

    class Module(loop_lightning.Digits):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer

    callback = loop_lightning.Marking(watermark, model)
    lightning.Trainer(accelerator="cpu", max_epochs=1, callbacks=[callback], **QUIET).fit(
        Module(model.train()), loader
    )


def fsdp2(model: nn.Module, watermark: Watermark, optimizer: Any, loader: DataLoader) -> None:
    """Every process takes its share of the batches, and begins them with the first one's statistics, as under DDP."""
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()

    def batches() -> Iterator[Any]:
        for batch in list(loader)[rank::world]:
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)
            yield batch

    loop_plain.train(model, watermark, optimizer, batches(), epochs=1)


def sharded(model: nn.Module) -> nn.Module:
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),))
    for module in model.modules():
        if type(module).__name__ == "ResNetBasicLayer":
            fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def prepared_by_accelerate() -> dict[str, Any]:
    """
    A training under FSDP2 as `accelerator.prepare` sets it up. Accelerate does that on accelerators only: here it is told that it is on one. (Of the
    ResNets of transformers it asks for input embeddings, which they refuse to give, so a ViT trains.)
    """
    accelerator = Accelerator(cpu=True)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        cpu_ram_efficient_loading=False,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["ViTLayer"],
    )
    AcceleratorState._shared_state |= {"fsdp_plugin": plugin, "distributed_type": DistributedType.FSDP}
    model, items = build("vit"), images(200)
    watermark = Watermark(model, {"method": "greedy_residuals", **SMALL, "bits": 150}, owner=Owner.create())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loop_accelerate.train(accelerator, model, watermark, optimizer, DataLoader(items, 20), epochs=5)
    evidence = watermark.verify()
    kinds = sorted({type(weight).__name__ for weight in model.parameters()})
    return {"verdict": str(evidence.verdict), "warnings": evidence.warnings, "kinds": kinds}


ALONE = {"plain": loop(plain), "accelerate": loop(accelerate), "timm": loop(timm, pairs)}
ALONE |= {"lightning": loop(lightning, pairs)}
TOGETHER = {"ddp": loop(accelerate), "fsdp2": loop(fsdp2, shard=sharded)}


def main(folder: Path) -> None:
    """One process of two."""
    torch.set_num_threads(1)
    rank = training_arguments(folder).process_index  # also makes the processes know of each other
    # Each brings an owner of its own: the first one's key is everybody's.
    watermark = Watermark(tiny_resnet(), {"method": "greedy_residuals", **SMALL}, owner=Owner.create())
    facts: dict[str, Any] = {"precommit": watermark.key.precommit.hex()}
    try:
        Watermark(sharded(tiny_resnet()), {"method": "greedy_residuals", **SMALL}, owner=Owner.create())
    except InvalidInput as error:
        facts["sharded"] = str(error)
    for method in METHODS:
        key = WatermarkKey.load(folder / "keys" / method)
        for name, run in {"trainer": in_the_trainer, **TOGETHER}.items():
            seen = run(key, folder / "out")
            tensors = {f"{n}.{k}": v.contiguous() for n, step in enumerate(seen.gradients) for k, v in step.items()}
            save_file(tensors, folder / f"{method}-{name}-rank{rank}.safetensors")
            facts[f"{method}-{name}"] = {"verdict": seen.verdict, "matches": seen.matches}
    facts["prepared"] = prepared_by_accelerate()
    (folder / f"facts-rank{rank}.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
