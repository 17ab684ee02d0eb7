"""
Time of one verification of a local checkpoint of 25 M parameters (timm resnet50), and what it reads of the file.

    python examples/benchmarks/verify_speed.py --output runs/verify_speed.json
    python examples/benchmarks/verify_speed.py --sizes 1e6 1e7 1e8 1e9 --output runs/verify_scale.json

The key has as many sub-keys of 512 bits as the trainer would embed (8), each checked with its 100 decoys. The clock starts after the
imports and covers opening the folder, reading, folding, all 808 scores and the combination. The model is untrained and carries no mark,
which changes nothing in the time.

`--sizes` measures instead how time and memory grow with the model: a ViT of about so many parameters, as a safetensors file whose weights are a hole
(a sparse file takes no room on the disk; zeros cost the same as numbers to read and to fold). Each size runs in a process of its own.
"""

import argparse
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import timm
import torch
from transformers import ViTConfig, ViTForImageClassification

from hf_watermark import GreedyResidualsConfig, Owner, Suspect, WatermarkKey, verify, wrap_timm
from hf_watermark.backbones import describe
from hf_watermark.evaluation.hardware import hardware, versions
from hf_watermark.methods.greedy_residuals.residuals import fitting_subkeys
from hf_watermark.serialization import SafetensorsFolder
from hf_watermark.verification.verifier import DECOYS


LIMIT_SECONDS = 1.5


class Recorder(Mapping[str, torch.Tensor]):
    """Notes which tensors are read."""

    def __init__(self, tensors: SafetensorsFolder):
        self.tensors, self.read = tensors, set[str]()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.read.add(name)
        return self.tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def make_key(folder: Path) -> WatermarkKey:
    """The key that `GreedyResidualsTrainer` would make for this checkpoint, without training."""
    config = GreedyResidualsConfig()
    carriers = describe(SafetensorsFolder(folder).shapes)
    layout = {"carriers": [carrier.to_dict() for carrier in carriers]}
    plan = ("greedy_residuals", "1", config.to_dict(), layout, fitting_subkeys(carriers, config))
    return WatermarkKey.create(Owner.create(), [plan])


def what_is_read(folder: Path, key: WatermarkKey) -> dict:
    tensors = SafetensorsFolder(folder)
    recorder = Recorder(tensors)
    verify(Suspect(str(folder), recorder, tensors.shapes), key)
    sizes = {name: tensors[name].nbytes for name in tensors}
    return {
        "tensors_read": sorted(recorder.read),
        "tensors": len(sizes),
        "bytes_read": sum(sizes[name] for name in recorder.read),
        "bytes": sum(sizes.values()),
    }


def sparse_vit(folder: Path, parameters: float) -> int:
    """Writes `model.safetensors` of a ViT of about so many parameters (12 layers, 4 x wider MLP) without its numbers; returns the exact count."""
    width = max(64, 64 * round((parameters / (12 * 12)) ** 0.5 / 64))
    with torch.device("meta"):
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 64}
        model = ViTForImageClassification(ViTConfig(num_labels=10, **sizes))
    shapes = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    header, place = {}, 0
    for name, shape in shapes.items():
        end = place + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [place, end]}
        place = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + place)
    return place // 4


def measure_size(parameters: float, repeat: int) -> dict:
    """One size, in this process: seconds, bytes read, and memory above what the imports take."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = sparse_vit(folder, parameters)
        key = make_key(folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        wall, cpu = [], []
        for _ in range(repeat):
            begin, cpu_begin = time.perf_counter(), time.process_time()
            verify(folder, key)
            wall.append(time.perf_counter() - begin)
            cpu.append(time.process_time() - cpu_begin)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        read = what_is_read(folder, key)
    return {
        "parameters": count,
        "median_seconds": round(statistics.median(wall), 3),
        "median_cpu_seconds": round(statistics.median(cpu), 3),
        "memory_mb": round(memory / 1024, 1),
        "bytes": read["bytes"],
        "bytes_read": read["bytes_read"],
        "tensors_read": len(read["tensors_read"]),
        "subkeys": len(key.claims()[0].subkeys),
    }


def measure_sizes(options: argparse.Namespace) -> dict:
    rows = []
    for size in options.sizes:
        command = [sys.executable, __file__, "--one-size", str(size), "--repeat", str(options.repeat)]
        done = subprocess.run(
            [*command, "--threads", str(options.threads)], capture_output=True, text=True, check=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(json.dumps(rows[-1]), flush=True)
    settings = {"repeat": options.repeat, "threads": options.threads, "decoys_per_subkey": DECOYS}
    return {"options": settings, "hardware": hardware(), "versions": versions(), "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="timm architecture")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path)
    parser.add_argument("--sizes", type=float, nargs="+", help="numbers of parameters, such as 1e6 1e9")
    parser.add_argument("--one-size", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one_size:
        print(json.dumps(measure_size(options.one_size, options.repeat)))
        return
    if options.sizes:
        save(measure_sizes(options), options.output)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = wrap_timm(timm.create_model(options.model), options.model, 1000)
        model.save_pretrained(folder)
        key = make_key(folder)
        wall, cpu = [], []
        for _ in range(options.repeat):
            begin, cpu_begin = time.perf_counter(), time.process_time()
            verify(folder, key)
            wall.append(time.perf_counter() - begin)
            cpu.append(time.process_time() - cpu_begin)
        record = {
            "options": {name: str(value) for name, value in vars(options).items() if not isinstance(value, Path)},
            "machine": platform.processor() or platform.machine(),
            "parameters": model.num_parameters(),
            "subkeys": len(key.claims()[0].subkeys),
            "decoys_per_subkey": DECOYS,
            "first_seconds": round(wall[0], 3),
            "median_seconds": round(statistics.median(wall), 3),
            "median_cpu_seconds": round(statistics.median(cpu), 3),
            "limit_seconds": LIMIT_SECONDS,
            **what_is_read(folder, key),
        }
    save(record, options.output)


def save(record: dict, output: Path | None) -> None:
    text = json.dumps(record, indent=1)
    print(text)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text)


if __name__ == "__main__":
    main()
