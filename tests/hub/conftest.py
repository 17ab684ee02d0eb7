"""`hub`: a Hub on the loopback interface to which the real client of this process talks."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import transformers
from huggingface_hub import constants
from server import HubServer, environment
from shops import Dated, Shop, open_shop, publish_dated, write_files


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A running [`HubServer`]; this process is logged in to it with `TOKEN`, has an empty cache, and waits for no retry."""
    with HubServer() as server:
        connect(monkeypatch, server.url, tmp_path / "hf_home")
        yield server
        # Otherwise the next server on the same port would be talked to through a dead connection.
        huggingface_hub.close_session()


def connect(monkeypatch: pytest.MonkeyPatch, url: str, home: Path) -> None:
    """
    Points the client at `url`. The rest of the suite runs offline in the same process and the client has read its environment long
    ago, so what it read is changed; `environment` does the same for a fresh process.
    """
    for name, value in environment(url, home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", False)
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_TOKEN_PATH"):
        monkeypatch.setattr(
            constants, name, str(home / {"HF_HOME": "", "HF_HUB_CACHE": "hub", "HF_TOKEN_PATH": "token"}[name])
        )
    # The shared client behind `huggingface_hub.create_repo` and its like.
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", url)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    # Retries wait for seconds; only the client's own clock is changed.
    impatient = SimpleNamespace(**vars(time))
    impatient.sleep = lambda seconds: None
    monkeypatch.setattr(huggingface_hub.utils._http, "time", impatient)


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
