"""
Loop-free marks read back from copies under other names: of one small model of every file of timm, and in the spellings of other libraries.

    python examples/benchmarks/copies.py --sections ports --output runs/copies.json
    python examples/benchmarks/copies.py --sections families types --output runs/copies.json

* `ports`: one tiny architecture as timm, transformers and torchvision build it (`tests/support/pairs.py`). Greedy residuals are written into one of them,
  the weights are moved to another one, and the mark is read there; and the unmarked weights as well.
* `families`: the smallest model of every file of timm, by `results/coverage.json`, or a narrower one of its class. Greedy residuals and WaterMAS are written, and read from a copy
  in bfloat16, renamed by a prefix and cut into two shards; and from such a copy of the unmarked model.

* `types`: the same for every image classifier and segmenter of transformers that its default config builds, with two layers where the config has a
  number of them.

Weights are random, as training would leave them (`tests/support/zoo.py`). The JSON is rewritten after every row; a row that is there is not measured again.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from alignment import Results, Row
from families import smallest_models
from narrower import small_model
from safetensors.torch import save_file
from torch import nn
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
)


HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1] / "tests" / "support"))

from pairs import PAIRS, images_of, ported  # noqa: E402
from zoo import lively  # noqa: E402

from hf_watermark import GreedyResidualsConfig, Owner, mark_model, verify  # noqa: E402


CONFIGS: dict[str, Any] = {
    "greedy_residuals": GreedyResidualsConfig(bits=160, group_size=8, subkeys=2),
    "watermas": {"method": "watermas", "bits": 160, "subkeys": 2},
}
ANY_BUDGET = 1e9
SECTIONS = ["ports", "families", "types"]
# Larger models of transformers are not made.
MOST_PARAMETERS = 70_000_000
# B0 in place of B7, whose layout takes minutes.
SMALLER = {"efficientnet": {"width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 1280}}
# Large networks of the same names in both libraries, or that are covered by a smaller one of their kind.
LEFT_OUT = ("efficientnetv2", "maxvit", "inception_v3", "vgg")


def read(suspect: Any, key: Any, name: str) -> Row:
    evidence = verify(suspect, key)
    row: Row = {name: str(evidence.verdict), f"{name}_log2_p": round(evidence.log2_p, 1)}
    return row | (
        {f"{name}_reason": (evidence.unread or " ".join(evidence.warnings))[:200]} if not evidence.trials else {}
    )


def port(name: str, here: str) -> Row:
    """A mark written into the model of one library, in all others."""
    torch.manual_seed(0)
    model = lively(PAIRS[name][here]())
    started = time.process_time()
    marked, key = mark_model(model, CONFIGS["greedy_residuals"], Owner.create(), images_of(name), ANY_BUDGET)
    row: Row = {"seconds": round(time.process_time() - started, 1)}
    for there in PAIRS[name]:
        if there != here:
            row |= read(ported(marked, PAIRS[name][there]()), key, there)
            row |= read(ported(model, PAIRS[name][there]()), key, f"unmarked_{there}")
    return row


def write_copy(model: nn.Module, folder: Path) -> Path:
    """In bfloat16, under a prefix, in two shards."""
    folder.mkdir()
    state = {
        f"net.backbone.{name}": (tensor.bfloat16() if tensor.is_floating_point() else tensor).contiguous().clone()
        for name, tensor in model.state_dict().items()
    }
    names = list(state)
    shards = {f"model-0000{n + 1}-of-00002.safetensors": names[n::2] for n in range(2)}
    for file, own in shards.items():
        save_file({name: state[name] for name in own}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, own in shards.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def family(build: Callable[[], nn.Module], method: str) -> Row:
    torch.manual_seed(0)
    try:
        model = lively(build())
    except ValueError as error:
        return {"not_built": str(error)[:200]}
    started = time.process_time()
    try:
        marked, key = mark_model(model, CONFIGS[method], Owner.create(), None, ANY_BUDGET)
    except Exception as error:
        return {"not_marked": f"{type(error).__name__}: {error}"[:200]}
    row: Row = {"seconds": round(time.process_time() - started, 1)}
    with tempfile.TemporaryDirectory() as folder:
        row |= read(write_copy(marked, Path(folder) / "marked"), key, "copy")
        row |= read(write_copy(model, Path(folder) / "plain"), key, "unmarked_copy")
    return row


def of_type(kind: type[PreTrainedModel], config_class: type[PreTrainedConfig]) -> nn.Module:
    """A model with fewer layers, as far as its default config says how many there are and the class takes fewer."""
    usual = config_class()
    # Of a net in stages it may be another name for the number of these.
    counted = "num_hidden_layers" not in usual.attribute_map and not hasattr(usual, "depths")
    layers: dict[str, Any] = (
        {"num_hidden_layers": 2} if counted and isinstance(getattr(usual, "num_hidden_layers", None), int) else {}
    )
    if hasattr(usual, "vision_config"):
        layers = {"vision_config": {"num_hidden_layers": 2}}
    layers = SMALLER.get(config_class.model_type, layers)
    for fields in (layers, {}):
        try:
            with torch.device("meta"):
                size = sum(tensor.numel() for tensor in kind(config_class(num_labels=10, **fields)).parameters())
            if size <= MOST_PARAMETERS:
                return kind(config_class(num_labels=10, **fields))
        except Exception as error:  # a class that does not take fewer layers, or not its own default config
            reason = f"{type(error).__name__}: {error}"
            continue
        reason = f"{size} parameters"
    raise ValueError(reason)


def types() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    for mapping in (MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING):
        for config_class in mapping:
            kinds = mapping[config_class]
            for kind in kinds if isinstance(kinds, tuple) else (kinds,):
                yield kind.__name__, partial(of_type, kind, config_class)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results = Results(options.output)
    if "ports" in options.sections:
        for name in PAIRS:
            for here in PAIRS[name] if name not in LEFT_OUT else ():
                results.row("ports", f"{name}: {here}", lambda name=name, here=here: port(name, here))
    if "families" in options.sections:
        for file, smallest in smallest_models(HERE / "results" / "coverage.json").items():
            name, build = small_model(file, smallest)
            for method in CONFIGS:
                results.row(
                    "families",
                    f"{file}: {name}: {method}",
                    lambda build=build, method=method: family(build, method),
                )
    if "types" in options.sections:
        for name, build in types():
            for method in CONFIGS:
                results.row("types", f"{name}: {method}", lambda build=build, method=method: family(build, method))


if __name__ == "__main__":
    main()
