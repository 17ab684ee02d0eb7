"""
Time of one verification of a local checkpoint of 25 M parameters (timm resnet50), and what it reads of the file.

    python examples/benchmarks/verify_speed.py --output runs/verify_speed.json

The key has as many sub-keys of 512 bits as the trainer would embed (8), each checked with its 100 decoys. The clock starts after the
imports and covers opening the folder, reading, folding, all 808 scores and the combination. The model is untrained and carries no mark,
which changes nothing in the time.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import timm
import torch

from hf_watermark import GreedyResidualsConfig, Owner, Suspect, WatermarkKey, verify, wrap_timm
from hf_watermark.backbones import describe
from hf_watermark.methods.greedy_residuals.residuals import fitting_subkeys
from hf_watermark.serialization import SafetensorsFolder
from hf_watermark.verifier import DECOYS


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="timm architecture")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
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
    text = json.dumps(record, indent=1)
    print(text)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text)


if __name__ == "__main__":
    main()
