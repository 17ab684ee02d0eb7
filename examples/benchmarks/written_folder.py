"""
A mark in a sharded folder of a billion parameters: seconds, and the most memory (GiB) that was held at once.

    python examples/benchmarks/written_folder.py --output runs/written_folder.json

The folder holds a vision transformer of the width and depth of ViT-g with random weights, for pictures of 112 pixels, 4 GB in shards of 500 MB.
Marking it runs in a process of its own, as `mark_model` does it without images; the mark is read back in another one.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import ViTConfig, ViTForImageClassification

from hf_watermark import Owner, WatermarkKey, mark_model, verify
from hf_watermark.serialization import SafetensorsFolder, write_json_atomic


SHARD_BYTES = 500 * 2**20
SHAPE = {"hidden_size": 1408, "intermediate_size": 6144, "num_attention_heads": 16, "patch_size": 14}


def make(folder: Path, layers: int) -> None:
    """Writes the folder, one tensor after the other."""
    folder.mkdir(parents=True)
    config = ViTConfig(**SHAPE, num_hidden_layers=layers, image_size=112, num_labels=1000)
    config.architectures = ["ViTForImageClassification"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = ViTForImageClassification(config)
    torch.manual_seed(0)
    shards: list[dict[str, torch.Tensor]] = [{}]
    index: dict[str, str] = {}
    held = 0
    for name, empty in model.state_dict().items():
        flat = empty.ndim < 2
        tensor = torch.full(empty.shape, float(name.endswith("weight"))) if flat else 0.02 * torch.randn(empty.shape)
        if held + tensor.nbytes > SHARD_BYTES:
            write(folder, shards, index)
            held = 0
        shards[-1][name], held = tensor, held + tensor.nbytes
    write(folder, shards, index)
    write_json_atomic(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": index})


def write(folder: Path, shards: list[dict[str, torch.Tensor]], index: dict[str, str]) -> None:
    file = f"model-{len(shards):05d}.safetensors"
    save_file(shards[-1], folder / file, {"format": "pt"})
    index |= dict.fromkeys(shards[-1], file)
    shards[-1] = {}
    shards.append({})


def step(name: str, *paths: str) -> dict[str, float]:
    """One step in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--step", name, *paths], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def run_step(name: str, source: Path, marked: Path, key: Path) -> dict[str, float]:
    start, processor = time.perf_counter(), time.process_time()
    if name == "mark":
        _, made = result = mark_model(source, "greedy_residuals", Owner.create(), output=marked)
        made.save(key)
        row = {"kl": result.fidelity.kl, "agreement": result.fidelity.agreement, "pictures": result.fidelity.images}
        row["subkeys"] = len(made.assignments[0].subkeys)
        row["largest_change"] = max(result.fidelity.layers.values())
    else:
        row = {"log2_p": verify(marked, WatermarkKey.load(key)).log2_p}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = {"seconds": time.perf_counter() - start, "processor_seconds": time.process_time() - processor}
    return row | seconds | {"memory_gb": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument(
        "--scratch", type=Path, help="folder for the model, which is made there once; by default one that is removed"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/written_folder.json"))
    parser.add_argument("--step", nargs=4, metavar=("NAME", "SOURCE", "MARKED", "KEY"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.step:
        name, *paths = options.step
        print(json.dumps(run_step(name, *map(Path, paths))))
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        model = (options.scratch or Path(scratch)) / f"model-{options.layers}"
        paths = [str(model), *(str(Path(scratch) / name) for name in ("marked", "key"))]
        if not model.exists():
            make(model, options.layers)
        tensors = SafetensorsFolder(model)
        record = {
            "parameters": sum(math.prod(shape) for shape in tensors.shapes.values()),
            "folder_gb": sum(file.stat().st_size for file in tensors.files) / 2**30,
            "mark": step("mark", *paths),
            "verify": step("verify", *paths),
        }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
