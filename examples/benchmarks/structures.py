"""
Networks whose layout is derived from their graph: false positives, and what alignment brings back.

    python examples/benchmarks/structures.py --sections nulls keys --output runs/structures.json
    python examples/benchmarks/structures.py --sections families --output runs/structures.json

* `nulls`: in each of six families a small net learns the digits, and both white-box marks are written into it; 20 nets of other seeds are read under both
  keys as they are, with all names gone (shapes and order decide), with a block's number or stage moved on, and aligned to the marked one's start.
* `keys`: 100,000 random keys of greedy residuals on four of these nets as they are, and on two of them aligned with nothing left out: counts at
  p <= 1e-2 ... 1e-5 against the largest that a one-sided binomial test at 99.9 % still calls nominal.
* `families`: a small model of every file of timm, see `families.py`.

The JSON is rewritten after every row; a row that is there is not measured again.
"""

import argparse
import copy
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from alignment import Results, Row
from families import as_suspect, families
from null import GREEDY, GreedyNull, fresh, table
from scipy.stats import binom
from timm.models.byobnet import ByoBlockCfg, ByobNet, ByoModelCfg
from timm.models.densenet import DenseNet
from timm.models.efficientvit_mit import EfficientVit
from timm.models.ghostnet import GhostNet
from timm.models.mlp_mixer import MlpMixer
from timm.models.regnet import RegNet, RegNetCfg
from torch import nn
from torch.nn import functional

from hf_watermark import Evidence, InvalidInput, Owner, WatermarkKey, mark_model, verify
from hf_watermark.backbones import layout_of
from hf_watermark.evaluation.digits import load_digits_data
from hf_watermark.methods.greedy_residuals.residuals import groups_per_slot
from hf_watermark.verification.alignment import Aligner


SECTIONS = ("nulls", "keys", "families")
NULLS, KEYS, STEPS = 20, 100_000, 150
ANY_BUDGET = 1e9
GREY: dict[str, Any] = {"num_classes": 10, "in_chans": 1}
MARKS: dict[str, dict[str, Any]] = {
    "greedy_residuals": {"method": "greedy_residuals", "bits": 256, "group_size": 8, "subkeys": 2},
    "watermas": {"method": "watermas", "bits": 160, "subkeys": 2},
}
State = dict[str, torch.Tensor]


def ghost_stages() -> list[list[list[float]]]:
    return [
        [[3, 16, 16, 0, 1]],
        [[3, 48, 24, 0, 2]],
        [[3, 72, 24, 0, 1]],
        [[5, 72, 40, 0.25, 2], [5, 120, 40, 0.25, 1]],
    ]


NETS: dict[str, Callable[[], nn.Module]] = {
    "regnet": lambda: RegNet(RegNetCfg(depth=6, w0=24, wa=16.0, wm=1.6, group_size=8), **GREY),
    "densenet": lambda: DenseNet(growth_rate=16, block_config=(3, 4), **GREY),
    "repvgg": lambda: ByobNet(
        ByoModelCfg(
            blocks=(ByoBlockCfg("rep", d=2, c=32, s=2), ByoBlockCfg("rep", d=3, c=48, s=2)),
            stem_type="rep",
            stem_chs=24,
        ),
        **GREY,
    ),
    "efficientvit": lambda: EfficientVit(
        widths=(16, 24, 32), depths=(1, 2, 2), head_dim=8, head_widths=(64, 64), **GREY
    ),
    "mixer": lambda: MlpMixer(img_size=32, patch_size=8, embed_dim=48, num_blocks=3, **GREY),
    "ghostnet": lambda: GhostNet(ghost_stages(), width=0.8, **GREY),
}


# --- Null models --------------------------------------------------------------------------------------------------------


def trained(family: str, seed: int, images: torch.Tensor, labels: torch.Tensor, folder: Path) -> nn.Module:
    """A net of its own seed and order of images, kept in `folder`."""
    torch.manual_seed(seed)
    model = NETS[family]()
    file = folder / f"{family}_{seed}.safetensors"
    if file.exists():
        from safetensors.torch import load_file

        model.load_state_dict(load_file(file))
        return model.eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        rows = torch.randint(len(images), (32,), generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1 - step / STEPS)
        optimizer.zero_grad()
        functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    from safetensors.torch import save_model

    folder.mkdir(parents=True, exist_ok=True)
    save_model(model, str(file))
    return model.eval()


def digits(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    data: Any = load_digits_data(part)
    items = [data[row] for row in range(len(data))]
    return torch.stack([item["pixel_values"] for item in items]), torch.tensor([item["labels"] for item in items])


def nameless(state: Mapping[str, torch.Tensor]) -> State:
    return {f"t{number}": tensor for number, tensor in enumerate(state.values())}


def moved_on(state: Mapping[str, torch.Tensor]) -> State:
    """Every first number in a name one higher, and noise under the names that fall free."""
    generator, result = torch.Generator().manual_seed(0), {}
    for name, tensor in state.items():
        parts = name.split(".")
        place = next((number for number, part in enumerate(parts) if part.isdecimal()), None)
        if place is not None:
            parts[place] = str(int(parts[place]) + 1)
        result[".".join(parts)] = tensor
    for name, tensor in state.items():
        if name not in result and tensor.is_floating_point():
            result[name] = torch.randn(tensor.shape, generator=generator)
    return result


def readings(model: nn.Module, key: WatermarkKey, start: nn.Module) -> Row:
    ways = {
        "names": lambda: verify(model, key),
        "no names": lambda: verify(as_suspect(nameless(model.state_dict())), key),
        "numbers moved on": lambda: verify(as_suspect(moved_on(model.state_dict())), key, reference=start),
        "aligned": lambda: verify(model, key, reference=start),
    }
    return {name: said(look) for name, look in ways.items()}


def said(look: Callable[[], Evidence]) -> Row:
    try:
        evidence = look()
    except InvalidInput as error:
        return {"refused": str(error)[:120]}
    return {"verdict": str(evidence.verdict), "log2_p": round(evidence.log2_p, 2), "trials": evidence.trials}


def nulls(options: argparse.Namespace, results: Results) -> None:
    (images, labels), folder = digits("train"), options.output.parent / "structures"
    test, answers = digits("test")
    for family in options.models or NETS:
        start = trained(family, 0, images, labels, folder)
        written = {
            name: mark_model(start, config, Owner.create(), images[:64], ANY_BUDGET) for name, config in MARKS.items()
        }
        for number in range(1, NULLS + 1):

            def measure(number: int = number) -> Row:
                model = trained(family, number, images, labels, folder)
                with torch.no_grad():
                    right = float((model(test).argmax(1) == answers).float().mean())
                row: Row = {"accuracy": round(right, 3)}
                return row | {name: readings(model, key, start) for name, (_, key) in written.items()}

            results.row("nulls", f"{family} | {number}", measure)
        results.row(
            "nulls", f"{family} | marked", lambda: {n: said(partial(verify, m, k)) for n, (m, k) in written.items()}
        )
        summarise(results, family)


def summarise(results: Results, family: str) -> None:
    rows = [results.record["nulls"][f"{family} | {number}"] for number in range(1, NULLS + 1)]
    read = [item for row in rows for name in MARKS for item in row[name].values() if "verdict" in item]
    summary = {
        "nets": len(rows),
        "readings": len(read),
        "found": sum(item["verdict"] == "mark found" for item in read),
        "not_found": sum(item["verdict"] == "not found" for item in read),
        "inconclusive": sum(item["verdict"] == "inconclusive" for item in read),
        "at level B or better": sum(item["log2_p"] <= -64 for item in read),
        "smallest log2 p": min(item["log2_p"] for item in read),
        "mean accuracy": round(sum(row["accuracy"] for row in rows) / len(rows), 3),
    }
    results.record["nulls"].pop(f"{family} | all", None)
    results.row("nulls", f"{family} | all", lambda: summary)


# --- Random keys --------------------------------------------------------------------------------------------------------


def keys(options: argparse.Namespace, results: Results) -> None:
    (images, labels), folder = digits("train"), options.output.parent / "structures"
    for family in options.models or NETS:
        start = trained(family, 0, images, labels, folder)
        carriers = layout_of(start)
        if groups_per_slot(carriers, GREEDY.group_size, 1) < GREEDY.bits:  # too small for these keys
            continue

        def measure() -> Row:
            models = [trained(family, number, images, labels, folder) for number in range(1, 5)]
            aligner = Aligner(start, carriers)
            for model in models[:2]:
                whole = copy.deepcopy(start)
                whole.load_state_dict(aligner.align(model.state_dict(), erase=False).tensors)
                models.append(whole)
            null = GreedyNull(models, carriers)
            begin = time.perf_counter()
            matches = np.array([null.matches(fresh()) for _ in range(KEYS)])
            p_values = binom.sf(matches - 1, GREEDY.bits, 0.5)
            return {
                "keys": KEYS,
                "as they are": table(p_values[:, :4]),
                "aligned": table(p_values[:, 4:]),
                "smallest log2 p": round(float(np.log2(p_values.min())), 2),
                "seconds": round(time.perf_counter() - begin),
            }

        results.row("keys", family, measure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sections", nargs="*", default=["nulls"], choices=SECTIONS)
    parser.add_argument("--models", nargs="*", default=[], help="only these families")
    parser.add_argument("--coverage", type=Path, default=Path(__file__).parent / "results/coverage.json")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    results = Results(options.output)
    for section in options.sections:
        {"nulls": nulls, "keys": keys, "families": families}[section](options, results)


if __name__ == "__main__":
    main()
