"""
Marks written into finished nets, without training: what they cost in fidelity and time, and what they survive beside marks that were trained in.

    python examples/benchmarks/written.py --output runs/written.json
    python examples/benchmarks/written.py --nets efficientnet_lite0 --photographs DATA/imagenet_sample200 --output runs/written.json
    python examples/benchmarks/written.py --nets cifar10 --cifar10 DATA/cifar10 --output runs/written.json

`small_resnet` is the digits net of 0.31 million parameters with default configs; the other digits nets are tiny nets of five families, with 256 bits in
groups of 8 weights. The nets for CIFAR-10 come from `written_nets.py`. EfficientNet-Lite0 has its ImageNet weights and is judged on photographs that
choose nothing: the second half of the folder; the first half are the unlabelled images of the rows `images`. Rows that are in the output are not
measured again.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from alignment import Results, Row, digit_backbones
from torch import nn
from written_nets import CIFAR10_EPOCHS, Net, cifar10_net, digits_net, lite0_net

from hf_watermark import Owner, WatermarkKey, mark_model, verify
from hf_watermark.attacks import (
    Attack,
    FineTune,
    Int4Quantize,
    Int8Quantize,
    MagnitudePrune,
    UniformQuantize,
    WeightNoise,
)
from hf_watermark.marking import measure_fidelity


ANY_BUDGET = 1e9


def attacks(learning_rate: float, **options: Any) -> dict[str, Attack]:
    found: dict[str, Attack] = {
        "noise 0.3": WeightNoise(relative_std=0.3),
        "50 % pruned": MagnitudePrune(0.5),
        "90 % pruned": MagnitudePrune(0.9),
        "8 bit": Int8Quantize(),
        "4 bit": Int4Quantize(),
        "4 bit per tensor": UniformQuantize(4),
    }
    for factor in (0.1, 1, 3):
        found[f"fine-tuned at {factor} x the rate"] = FineTune(
            learning_rate=learning_rate * factor, optimizer="adamw", **options
        )
    return found


@torch.no_grad()
def accuracy(model: Any, images: torch.Tensor, labels: torch.Tensor) -> float:
    found = torch.cat([model(batch).logits.argmax(dim=1) for batch in images.split(32)])
    return float((found == labels).float().mean())


def measure(
    model: nn.Module, config: Any, images: torch.Tensor | None, test: torch.Tensor, labels: torch.Tensor
) -> Row:
    start = time.process_time()
    marked, key = result = mark_model(model, config, Owner.create(), images, ANY_BUDGET)
    seconds = time.process_time() - start
    fidelity, evidence = measure_fidelity(model, marked, test), verify(marked, key)
    return {
        "log2_p": evidence.log2_p,
        "match_rate": evidence.rate,
        "unmarked_log2_p": verify(model, key).log2_p,
        "kl": fidelity.kl,
        "agreement": fidelity.agreement,
        "forecast_kl": result.fidelity.kl,
        "accuracy_before": accuracy(model, test, labels),
        "accuracy": accuracy(marked, test, labels),
        "largest_change": max(fidelity.layers.values()),
        "processor_seconds": seconds,
    }


def survive(marked: Any, key: WatermarkKey, net: Net) -> Row:
    """Evidence after each attack, and the accuracy that is left."""
    row: Row = {}
    for name, attack in {"none": None, **attacks(**net.attack)}.items():
        attacked = marked if attack is None else attack(marked, net.train)
        row[name] = {
            "log2_p": verify(attacked, key).log2_p,
            "accuracy": accuracy(attacked.eval(), net.test, net.labels),
        }
    return row


def written(net: Net, config: Any) -> Row:
    return survive(*mark_model(net.model(), config, Owner.create(), net.images, ANY_BUDGET), net)


def measure_net(net: Net, keys: int, results: Results) -> None:
    for mark, config in net.configs.items():
        for known, given in {"no data": None, f"{len(net.images)} images": net.images}.items():
            for number in range(keys):
                label = f"{net.name}, {mark}, {known} | key {number}"
                results.row(
                    "fidelity",
                    label,
                    lambda c=config, g=given: measure(net.model(), c, g, net.test, net.labels),
                )
        results.row("survival", f"{net.name}, {mark} | written", lambda c=config: written(net, c))
        if mark in net.trained_marks:
            make = net.trained_marks[mark]
            results.row("survival", f"{net.name}, {mark} | trained", lambda m=make: survive(*m(), net))


def nets(options: argparse.Namespace, parser: argparse.ArgumentParser) -> Iterator[Net]:
    for name in options.nets:
        if name == "cifar10":
            if options.cifar10 is None:
                parser.error("cifar10 needs --cifar10, the folder of its parquet files")
            yield from (cifar10_net(family, options.cifar10, options.cifar10_nets) for family in CIFAR10_EPOCHS)
        elif name == "efficientnet_lite0":
            if options.photographs is None:
                parser.error(
                    "efficientnet_lite0 needs --photographs, a folder of parquet files with `image` and `label`"
                )
            yield lite0_net(options.photographs)
        else:
            yield digits_net(name)


def main() -> None:
    known = ["small_resnet", *digit_backbones(), "efficientnet_lite0", "cifar10"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=known, default=known[:-2])
    parser.add_argument("--keys", type=int, default=5)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--cifar10", type=Path)
    parser.add_argument("--cifar10-nets", type=Path, default=Path("runs/written_nets"))
    parser.add_argument("--output", type=Path, default=Path("runs/written.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = Results(options.output)
    for net in nets(options, parser):
        measure_net(net, options.keys, results)


if __name__ == "__main__":
    main()
