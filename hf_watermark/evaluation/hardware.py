"""On what, and with which versions, something was measured."""

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch

from ..package import VERSION


LIBRARIES = ("torch", "transformers", "timm", "accelerate", "datasets", "numpy", "scipy")


@cache
def hardware() -> str:
    """Processor, cores, memory and accelerator in one line; no names of machines or people."""
    parts = [f"{_processor()}, {os.cpu_count()} cores"]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        parts.append(f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB")
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


@cache
def versions() -> dict[str, str]:
    """Versions of this library, of Python and of what it stands on."""
    found = {"hf_watermark": VERSION, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            named = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")
    except OSError:
        named = ""
    return named or platform.processor() or platform.machine()
