"""
Inputs that are mirrored before the net sees them: what each black-box mark of a benchmark loses by it, and what a second look with
mirrored images brings back. Models and keys are those that a run of the matrix left in its folder.

    hf-watermark benchmark examples/benchmarks/matrix_cifar10.yaml --data cifar10=FOLDER --output runs/cifar_matrix
    python examples/benchmarks/mirrored.py examples/benchmarks/matrix_cifar10.yaml runs/cifar_matrix --data cifar10=FOLDER --output runs/mirrored.json
"""

import argparse
import json
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import AutoModelForImageClassification, PreTrainedModel

from hf_watermark import Suspect, WatermarkKey, verify
from hf_watermark.evaluation import read_config
from hf_watermark.evaluation.matrix.cells import TWIN, Store, model_cells
from hf_watermark.mapping import METHODS


def three_looks(model: PreTrainedModel, key: WatermarkKey) -> dict[str, float]:
    """log2 p of the model behind an interface, of the same behind a mirror, and of the latter asked with mirrored images."""

    def interface(images: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(images).logits.softmax(dim=1)

    def mirrored(images: torch.Tensor) -> torch.Tensor:
        return interface(images.flip(-1))

    looks = {
        "plain": verify(interface, key, beacon=key.beacon),
        "behind_a_mirror": verify(mirrored, key, beacon=key.beacon),
        "mirrored_look": verify(Suspect.open(mirrored).mirrored(), key, looks=2, beacon=key.beacon),
    }
    return {name: round(evidence.log2_p, 1) for name, evidence in looks.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("folder", type=Path, help="what `hf-watermark benchmark --output` wrote")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    config = read_config(options.config, dict(entry.split("=", 1) for entry in options.data))
    store = Store(options.folder)
    rows = []
    for cell in tqdm(model_cells(config), desc="models"):
        black_box = any(METHODS[item["method"]].access != "weights" for item in cell.configs)
        if cell.method == TWIN or not black_box or not store.model_folder(cell).exists():
            continue
        model = AutoModelForImageClassification.from_pretrained(store.model_folder(cell), local_files_only=True).eval()
        looks = three_looks(model, WatermarkKey.load(store.key_folder(cell)))
        rows.append(
            {"method": cell.method, "data": cell.data, "seed": cell.seed, "precision": cell.precision, **looks}
        )
    text = json.dumps({"config": options.config.name, "rows": rows}, indent=1)
    print(text)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
