"""
Marks in LoRA adapters: what they cost, how they are read, and what is left after the merged model was trained again.

    python examples/benchmarks/adapters.py --output runs/adapters.json

Two nets learn the upright digits; that is the base. An adapter then teaches each the digits turned by 90 degrees, with a mark and without (the
twin: same seed, data and recipe). `vit` has 0.07 million parameters and adapters on all linear layers of its blocks, `resnet` 0.31 million with
adapters on its convolutions, BatchNorms and head saved whole. Each mark is read from the saved adapter alone, from the adapter on its base, from
the merged model beside the base, and from the merged model after it learnt again: all of its weights, the digits turned and mirrored, at the rate
that the base was trained with. Rows that are in the output are not measured again.
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from alignment import Results, Row
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional
from transformers import PreTrainedModel, Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from hf_watermark import GreedyResidualsConfig, GreedyResidualsTrainer, Owner, verify
from hf_watermark.attacks import FineTune
from hf_watermark.evaluation.digits import build_digits_model, load_digits_data


Data = list[dict[str, Any]]
RANKS = (4, 8, 16, 32)
SEEDS = (0, 1, 2)
MARK = GreedyResidualsConfig(bits=256, group_size=32)
EPOCHS = {"vit": (40, 20, 4), "resnet": (8, 5, 2)}  # of the base, of the adapter, and of the merged model again
VIT: Row = {"image_size": 16, "patch_size": 4, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VIT |= {"intermediate_size": 128, "num_channels": 1, "num_labels": 10}
BASE_RATE = 3e-3
ADAPTER_RATE = {"vit": 5e-3, "resnet": 1e-2}  # the twin of the ViT does not settle at 1e-2


def build(net: str, seed: int) -> PreTrainedModel:
    set_seed(seed)
    return build_digits_model(seed) if net == "resnet" else ViTForImageClassification(ViTConfig(**VIT))


def adapter(net: str, rank: int) -> LoraConfig:
    if net == "resnet":
        where: Row = {"target_modules": ["convolution"], "modules_to_save": ["normalization", "classifier"]}
    else:
        where = {
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"],
            "modules_to_save": ["classifier"],
        }
    return LoraConfig(r=rank, lora_alpha=2 * rank, **where)


def digits(split: Any, turned: bool = True, mirrored: bool = False) -> Data:
    """The digits at 16 x 16 pixels, upright or turned by 90 degrees, which may be mirrored after that."""
    found = []
    for item in load_digits_data(split):
        image = functional.avg_pool2d(item["pixel_values"], 2)
        image = image.rot90(1, (-1, -2)) if turned else image
        found.append(item | {"pixel_values": image.flip(-1) if mirrored else image})
    return found


def arguments(folder: str, seed: int, rate: float, epochs: float) -> TrainingArguments:
    return TrainingArguments(
        folder, num_train_epochs=epochs, per_device_train_batch_size=64, learning_rate=rate, lr_scheduler_type="cosine",
        warmup_steps=20, seed=seed, save_strategy="no", report_to="none", logging_strategy="no", disable_tqdm=True,
        use_cpu=True,
    )  # fmt: skip


@cache
def base_of(net: str, seed: int) -> dict[str, torch.Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            build(net, seed),
            arguments(folder, seed, BASE_RATE, EPOCHS[net][0]),
            train_dataset=digits("train", turned=False),
        )
        trainer.train()
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def based(net: str, seed: int) -> PreTrainedModel:
    model = build(net, seed)
    model.load_state_dict(base_of(net, seed))
    return model.eval()


@torch.no_grad()
def accuracy(model: Any, data: Data) -> float:
    images, labels = (
        torch.stack([item["pixel_values"] for item in data]),
        torch.tensor([item["labels"] for item in data]),
    )
    return float((model.eval()(pixel_values=images).logits.argmax(dim=1) == labels).float().mean())


def adapted(net: str, rank: int, seed: int, marked: bool, folder: str) -> Any:
    """The trainer after its run."""
    set_seed(seed)
    model: Any = get_peft_model(based(net, seed), adapter(net, rank))
    kind: Callable[..., Any] = GreedyResidualsTrainer if marked else Trainer
    own: Row = {"watermark": MARK, "owner": Owner.create()} if marked else {}
    set_seed(seed)
    trainer = kind(
        model=model,
        args=arguments(folder, seed, ADAPTER_RATE[net], EPOCHS[net][1]),
        train_dataset=digits("train"),
        **own,
    )
    trainer.model_accepts_loss_kwargs = False
    trainer.train()
    return trainer


def measure(net: str, rank: int, seed: int) -> Row:
    test, again = digits("test"), digits("train", mirrored=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        twin = adapted(net, rank, seed, False, name)
        trainer = adapted(net, rank, seed, True, name)
        key, saved, base, whole = trainer.key, folder / "adapter", folder / "base", folder / "merged"
        trainer.save_model(str(saved))
        based(net, seed).save_pretrained(base)
        merged: Any = PeftModel.from_pretrained(based(net, seed), saved).merge_and_unload()
        merged.save_pretrained(whole)
        attack = FineTune(learning_rate=BASE_RATE, epochs=EPOCHS[net][2], optimizer="adamw", batch_size=64)
        tuned = attack(merged, again)
        return {
            "base_accuracy": accuracy(based(net, seed), test),
            "twin_accuracy": accuracy(twin.model, test),
            "accuracy": accuracy(merged, test),
            "subkeys": len(key.used),
            "adapter": verify(saved, key).log2_p,
            "adapter_and_base": verify(saved, key, base=base).log2_p,
            "merged": verify(whole, key, base=base).log2_p,
            "trained_again": verify(tuned, key, base=base).log2_p,
            "accuracy_again": accuracy(tuned, digits("test", mirrored=True)),
            "twin_as_suspect": verify(twin.model, key).log2_p,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=["vit", "resnet"], default=["vit", "resnet"])
    parser.add_argument("--ranks", nargs="+", type=int, default=RANKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--output", type=Path, default=Path("runs/adapters.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results = Results(options.output)
    for seed, rank, net in product(options.seeds, options.ranks, options.nets):
        results.row("lora", f"{net}, rank {rank} | seed {seed}", lambda: measure(net, rank, seed))


if __name__ == "__main__":
    main()
