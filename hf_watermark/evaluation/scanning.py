"""A plan on paper: what scanning a whole Hub for one's marks costs, and how many false alarms to expect. Every input is stated."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from ..evidence import LEVEL_B, SELF_CHECK
from ..serialization import InvalidInput


@dataclass(frozen=True)
class ScanInputs:
    """
    What the plan assumes.

    Args:
        repos (`int`):
            Repositories with safetensors files.
        keys (`int`):
            Keys looked for.
        header_bytes (`int`):
            Of one range request for the names and shapes in a file.
        files (`float`):
            Mean number of safetensors files per repository.
        matching (`float`):
            Share of repositories whose shapes fit the architecture of a key, so that carriers are read.
        checkpoint_bytes (`int`):
            Mean size of those.
        read_share (`float`):
            Share of a checkpoint that a white-box check reads.
        check_requests (`int`):
            Requests of one check.
        requests_per_second (`float`):
            Per address, what the Hub lets through for long.
        addresses (`int`):
            Machines with an address of their own.
        check_seconds (`float`):
            Of one core for one check, decoys included.
        workers (`int`):
            Cores, or GPUs where one check is one batch.
        marked (`float`):
            Share of matching repositories that do carry a mark.
    """

    repos: int = 2_000_000
    keys: int = 1
    header_bytes: int = 100_000
    files: float = 1.5
    matching: float = 0.02
    checkpoint_bytes: int = 350_000_000
    read_share: float = 0.03
    check_requests: int = 12
    requests_per_second: float = 10.0
    addresses: int = 16
    check_seconds: float = 2.2
    workers: int = 1000
    marked: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            share = field.name in ("matching", "read_share", "marked")
            if not (0 <= value <= 1 if share else 0 < value < 1e18):
                raise InvalidInput(
                    f"`{field.name}` is {value}: choose {'a share in [0, 1]' if share else 'a positive number'}"
                )


def scan_plan(inputs: ScanInputs) -> dict[str, Any]:
    """
    Bytes, requests, hours and expected false alarms of a scan in three stages: names and shapes of all, carriers of those that fit, and
    a second look with a fresh sub-key at what passed the radar level.

    The p-values are exact, so the expected number of false alarms at a threshold p is at most p times the number of (repository, key) pairs;
    the e-BH threshold holds under any dependence between repositories.
    """
    candidates = inputs.repos * inputs.matching
    pairs = max(1.0, candidates * inputs.keys)
    shapes = _stage(
        "names and shapes of every repository", inputs.repos * inputs.files, inputs.header_bytes, inputs, 0.0
    )
    checks = _stage(
        "carriers of the repositories that fit, under every key",
        candidates * inputs.check_requests,
        inputs.checkpoint_bytes * inputs.read_share / inputs.check_requests,
        inputs,
        pairs * inputs.check_seconds,
    )
    radar = pairs * 2.0**SELF_CHECK
    again = radar + candidates * inputs.marked
    second = _stage(
        "a fresh sub-key on what passed the radar level",
        again * inputs.check_requests,
        inputs.checkpoint_bytes * inputs.read_share / inputs.check_requests,
        inputs,
        again * inputs.check_seconds,
    )
    stages = [shapes, checks, second]
    return {
        "inputs": asdict(inputs),
        "stages": stages,
        "total": {
            "requests": sum(stage["requests"] for stage in stages),
            "bytes": sum(stage["bytes"] for stage in stages),
            # Requests and processor work overlap; the slower one decides, stage by stage.
            "hours": sum(stage["hours"] for stage in stages),
        },
        "pairs": pairs,
        "false_alarms": {
            "radar, log2 p <= -20": radar,
            "both radar looks": pairs * 2.0 ** (2 * SELF_CHECK),
            "level B, log2 p <= -64": pairs * 2.0**LEVEL_B,
        },
        "log2_e_for_ebh_at_1_percent": math.log2(pairs / 0.01),
    }


def _stage(name: str, requests: float, bytes_each: float, inputs: ScanInputs, cpu_seconds: float) -> dict[str, Any]:
    waiting = requests / (inputs.requests_per_second * inputs.addresses)
    working = cpu_seconds / inputs.workers
    return {
        "stage": name,
        "requests": requests,
        "bytes": requests * bytes_each,
        "core_hours": cpu_seconds / 3600,
        "hours": max(waiting, working) / 3600,
        "limited_by": "requests" if waiting >= working else "processors",
    }
