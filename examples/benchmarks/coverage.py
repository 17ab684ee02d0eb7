"""
Which models have places for a white-box mark: every image model that timm lists, and every image classifier and segmenter of transformers.

    python examples/benchmarks/coverage.py --output runs/coverage.json
    python examples/benchmarks/coverage.py --smallest --output runs/coverage.json   # of timm, the smallest model of each file

No weights are made: models are built on the meta device. A row says how the layout was found (`family`: by names, `streams`: later writers in the
graph, `thirds`: every third input), how many sub-keys of greedy residuals with default parameters fit, and otherwise the reason. Rows that are in the
output are not measured again.
"""

import argparse
import logging
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from alignment import Results, Row
from timm.models import list_models
from torch import nn
from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING

from hf_watermark import GreedyResidualsConfig, InvalidInput
from hf_watermark.backbones import layout_of
from hf_watermark.methods.greedy_residuals.residuals import fitting_subkeys


CLASSES = 10


def timm_models() -> dict[str, str]:
    """Name and file of every model."""
    return {name: timm.model_entrypoint(name).__module__.rpartition(".")[2] for name in list_models()}


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, num_classes=CLASSES)


def parameters(name: str) -> Row:
    try:
        return {"parameters": sum(tensor.numel() for tensor in on_meta(name).parameters())}
    except Exception as error:
        return {"not_built": f"{type(error).__name__}: {error}"[:200]}


def layout(build: Any) -> Row:
    """Where the marks of one model would lie."""
    try:
        model = build()
    except Exception as error:
        return {"not_built": f"{type(error).__name__}: {error}"[:200]}
    modules = sum(1 for _ in model.modules())
    started = time.process_time()
    try:
        carriers = layout_of(model)
    except InvalidInput as error:
        return {"reason": str(error)[:200], "modules": modules, "seconds": round(time.process_time() - started, 2)}
    thirds = sum(carrier.every_third_input for carrier in carriers)
    derived = carriers[0].role == carriers[0].name
    return {
        "found_by": "family" if not derived else "streams" if thirds < len(carriers) else "thirds",
        "carriers": len(carriers),
        "every_third_input": thirds,
        "centred": sum(carrier.centred for carrier in carriers),
        "weights": sum(carrier.rows * carrier.eligible for carrier in carriers),
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        "subkeys": fitting_subkeys(carriers, GreedyResidualsConfig()),
        "modules": modules,
        "seconds": round(time.process_time() - started, 2),
    }


def transformers_models() -> Iterator[tuple[str, Any]]:
    for task, mapping in (
        ("classification", MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING),
        ("segmentation", MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING),
    ):
        for config_class in mapping:
            kinds = mapping[config_class]
            for kind in kinds if isinstance(kinds, tuple) else (kinds,):

                def build(config_class: Any = config_class, kind: Any = kind) -> nn.Module:
                    with torch.device("meta"):
                        return kind(config_class(num_labels=CLASSES))

                yield f"{task}: {kind.__name__}", build


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smallest", action="store_true", help="of timm, the smallest model of each file only")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    results = Results(options.output)
    files = timm_models()
    sizes = {
        name: results.row("sizes", name, lambda name=name: parameters(name)).get("parameters", 0) for name in files
    }
    by_file: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name, file in files.items():
        by_file[file].append((sizes[name] or 10**12, name))
    smallest = [min(found)[1] for found in by_file.values()]
    for name in smallest:
        measure_timm(results, name, files[name])
    for name, build in transformers_models():
        results.row("transformers", name, lambda build=build: layout(build))
    for name in [] if options.smallest else sorted(files, key=lambda name: sizes[name]):
        measure_timm(results, name, files[name])


def measure_timm(results: Results, name: str, file: str) -> None:
    results.row("timm", name, lambda: {"file": file} | layout(lambda: on_meta(name)))


if __name__ == "__main__":
    main()
