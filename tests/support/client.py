"""Points the real client of this process at a loopback Hub."""

import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import transformers
from huggingface_hub import constants
from server import environment


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
