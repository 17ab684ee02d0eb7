"""A Hub of generated repositories with some marked copies in it, two keys of one layout, and what was made of them."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from client import connect
from many_repos import ManyRepos
from server import environment
from watched import add_noise, changed, marked_copy, pretrained_like

from hf_watermark import GreedyResidualsConfig, WatermarkKey
from hf_watermark.watch import WatchSettings


ARCHITECTURE = "resnet10t"
OTHERS = (
    "mobilenetv3_small_050",
    "regnety_002",
    "mobilenetv3_small_050",
    ARCHITECTURE,
    *["mobilenetv3_small_050"] * 6,
)
CONFIG = GreedyResidualsConfig(strength=1.0, bits=512, subkeys=4)


@dataclass(frozen=True)
class Copies:
    """Folders of models (`plain`, `tuned`, `both`, `start`), and the two key folders."""

    folder: Path
    keys: tuple[str, str]

    def key(self, place: int) -> WatermarkKey:
        return WatermarkKey.load(self.keys[place])


@pytest.fixture(scope="session")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    folder = tmp_path_factory.mktemp("watched")
    start = pretrained_like(ARCHITECTURE)
    start.save_pretrained(folder / "start")
    mine, _ = marked_copy(start, folder / "mine", CONFIG)
    mine.save_pretrained(folder / "plain")
    changed(mine, add_noise(0.2)).save_pretrained(folder / "tuned")
    marked_copy(mine, folder / "second", CONFIG)[0].save_pretrained(folder / "both")
    return Copies(folder, (str(folder / "mine"), str(folder / "second")))


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ManyRepos]:
    """A Hub of nobody's repositories, none yet; this process talks to it."""
    with ManyRepos() as hub:
        connect(monkeypatch, hub.url, tmp_path / "hf_home")
        yield hub
        huggingface_hub.close_session()
        huggingface_hub.set_client_factory(huggingface_hub.utils._http.default_client_factory)


def fill(hub: ManyRepos, copies: Copies) -> None:
    """30 repositories, three of them marked."""
    hub.generate(27, OTHERS)
    for name, minute in (("plain", 5), ("tuned", 14), ("both", 22)):
        hub.add_marked(f"thief/{name}", copies.folder / name, minute)


@pytest.fixture
def crowd(many: ManyRepos, copies: Copies) -> ManyRepos:
    fill(many, copies)
    return many


@pytest.fixture
def settings(copies: Copies, tmp_path: Path) -> Callable[..., WatchSettings]:
    def make(**changes: Any) -> WatchSettings:
        fields = {"keys": copies.keys, "output": str(tmp_path / "watch"), "rate": 1e6, "batch": 12}
        return WatchSettings(**fields | changes)

    return make


def command_line(hub: ManyRepos, copies: Copies, output: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """A watch in a process of its own, and its environment."""
    keys = [f"--key={folder}" for folder in copies.keys]
    line = [sys.executable, "-m", "hf_watermark.cli.main", "watch", *keys, "--output", str(output), "--json"]
    return [*line, "--rate", "1000000", "--batch", "10", *arguments], {
        **os.environ,
        **environment(hub.url, output / "home"),
    }


def watch_in_a_process(
    hub: ManyRepos, copies: Copies, output: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    line, env = command_line(hub, copies, output, *arguments)
    return subprocess.run(line, env=env, capture_output=True, text=True, check=False)
