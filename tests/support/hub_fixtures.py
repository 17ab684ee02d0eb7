"""`hub`: a Hub on the loopback interface to which the real client of this process talks."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
from client import connect
from huggingface_hub import constants
from server import HubServer
from shops import Dated, Shop, open_shop, publish_dated, write_files


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A running [`HubServer`]; this process is logged in to it with `TOKEN`, has an empty cache, and waits for no retry."""
    with HubServer() as server:
        connect(monkeypatch, server.url, tmp_path / "hf_home")
        yield server
        # Otherwise the next server on the same port would be talked to through a dead connection.
        huggingface_hub.close_session()


@pytest.fixture
def offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def anonymous(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is logged in."""
    monkeypatch.delenv("HF_TOKEN")


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return open_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def other_shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Another owner with another model."""
    return open_shop(tmp_path_factory.mktemp("other"), seed=9)


@pytest.fixture(scope="session")
def dated(tmp_path_factory: pytest.TempPathFactory) -> Dated:
    """A published model with everything: dates, beacon, an opened sub-key. Do not change its folder."""
    place = tmp_path_factory.mktemp("dated")
    with pytest.MonkeyPatch.context() as monkeypatch, HubServer() as server:
        connect(monkeypatch, server.url, place / "hf_home")
        return publish_dated(place, server)


@pytest.fixture
def repository(dated: Dated, tmp_path: Path) -> Path:
    """A copy of that model's repository, to be spoilt."""
    write_files(
        tmp_path / "repository",
        {str(p.relative_to(dated.folder)): p.read_bytes() for p in dated.folder.rglob("*") if p.is_file()},
    )
    return tmp_path / "repository"
