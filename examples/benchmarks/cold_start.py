"""
How long a fresh process takes, and how much memory: the package, the commands that only print, and white-box verification of a local checkpoint.

    python examples/benchmarks/cold_start.py --rounds 7 --output runs/cold_start.json

Every round starts each process once, in turn, so that what else the machine does falls on all of them alike; the medians are compared with
`import torch` and `import typer` of the same rounds. Processor time stands beside wall time, because other work of the machine does not change it
much. The checkpoint is a timm resnet50 (25.6 M parameters) under the key that the trainer would make: 8 sub-keys of 512 bits, 100 decoys each. It
carries no mark, which changes nothing in the time. Peak memory is that of the whole life of the process, as the system counts it.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any


PYTHON = [sys.executable, "-c"]
SCRIPT = [str(Path(sys.executable).with_name("hf-watermark"))]
# Where the median of a row may be at most so many seconds above that of another one.
LIMITS = {
    "import hf_watermark": ("python", 0.1),
    "methods": ("", 0.7),
    "--help": ("", 0.7),
    "verify --help": ("", 0.7),
    "attack --help": ("", 0.7),
    "verify a folder": ("import torch", 2.0),
    "a worker of a watch": ("", 3.0),
}
# All that a worker reads before its first repository.
WORKER = """
from importlib import import_module
from hf_watermark import WatermarkKey
from hf_watermark.watch.engine import PRELOADED
for module in PRELOADED:
    import_module(module)
WatermarkKey.load({!r}).claims()
"""
LIMIT_MB = {"verify a folder": 700}


def make_checkpoint(folder: Path) -> None:
    """The model and its key."""
    import timm

    from hf_watermark import GreedyResidualsConfig, Owner, WatermarkKey, wrap_timm
    from hf_watermark.backbones import describe
    from hf_watermark.methods.greedy_residuals.residuals import fitting_subkeys
    from hf_watermark.serialization import SafetensorsFolder

    # Without `zero_init_last`, as after some training: rows behind a zero say nothing and cost nothing.
    module = timm.create_model("resnet50", zero_init_last=False)
    wrap_timm(module, "resnet50", 1000).save_pretrained(folder / "model")
    config = GreedyResidualsConfig()
    carriers = describe(SafetensorsFolder(folder / "model").shapes)
    layout = {"carriers": [carrier.to_dict() for carrier in carriers]}
    plan = ("greedy_residuals", "1", config.to_dict(), layout, fitting_subkeys(carriers, config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        WatermarkKey.create(Owner.create(), [plan]).save(folder / "key")


def commands(folder: Path) -> dict[str, list[str]]:
    return {
        "python": [*PYTHON, "pass"],
        "import typer": [*PYTHON, "import typer"],
        "import torch": [*PYTHON, "import torch"],
        "import hf_watermark": [*PYTHON, "import hf_watermark"],
        "methods": [*SCRIPT, "methods"],
        "--help": [*SCRIPT, "--help"],
        "verify --help": [*SCRIPT, "verify", "--help"],
        "attack --help": [*SCRIPT, "attack", "--help"],
        "import verify": [*PYTHON, "from hf_watermark import verify"],
        "verify a folder": [*SCRIPT, "verify", str(folder / "model"), "--key", str(folder / "key")],
        "a worker of a watch": [*PYTHON, WORKER.format(str(folder / "key"))],
    }


def measure(command: list[str]) -> dict[str, float]:
    """One process: seconds, seconds of the processor, and peak memory in MB."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begin
    if process.returncode not in (0, 1):  # 1: not found
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return {"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss / scale}


def summary(rows: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, Any]]:
    table: dict[str, dict[str, Any]] = {}
    for name, runs in rows.items():
        table[name] = {field: round(statistics.median(run[field] for run in runs), 3) for field in runs[0]}
    for name, (other, limit) in LIMITS.items():
        row, base = table[name], table.get(other, {"seconds": 0.0, "cpu_seconds": 0.0})
        row["limit"] = {
            "above": other or "nothing",
            "seconds": limit,
            "measured_seconds": round(row["seconds"] - base["seconds"], 3),
            "measured_cpu_seconds": round(row["cpu_seconds"] - base["cpu_seconds"], 3),
        }
    for name, limit in LIMIT_MB.items():
        table[name]["limit"]["mb"] = limit
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make_checkpoint(options.make)
        return
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # In another process: the system counts what a parent holds as memory of the processes that it starts.
        subprocess.run([sys.executable, __file__, "--make", str(folder)], check=True)
        known = commands(folder)
        for command in known.values():  # files into the page cache, modules compiled
            measure(command)
        rows: dict[str, list[dict[str, float]]] = {name: [] for name in known}
        for _ in range(options.rounds):
            for name, command in known.items():
                rows[name].append(measure(command))
    from hf_watermark.evaluation.hardware import hardware, versions

    settings = {"rounds": options.rounds, "threads": 1, "load": [round(load, 1) for load in os.getloadavg()]}
    record = {"options": settings, "hardware": hardware(), "versions": versions(), "medians": summary(rows)}
    text = json.dumps(record, indent=1)
    print(text)
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
