"""Large files through Xet, as on the real Hub: the store is a local folder, the protocol around it is the real one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from server import HubServer

from hf_watermark.claims import check
from hf_watermark.publishing import publish
from hf_watermark.suspects.source import Source


pytest.importorskip("hf_xet", reason="hf_xet is not installed on this platform")


@pytest.fixture
def xet_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    from huggingface_hub.utils import _xet

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setenv("HF_XET_CACHE", str(tmp_path / "xet"))
    hub.xet = tmp_path / "store"
    hub.xet.mkdir()
    yield hub
    _xet.abort_xet_session()


def test_publish_and_check_through_xet(xet_hub, shop):
    publish(shop.folder, "me/model", shop.key, shop.owner, shop.read)
    report = check("me/model")
    assert [str(level.outcome) for level in report.levels] == ["passed", "passed", "open", "passed"]
    fetched = Source.open("me/model").path("model.safetensors")
    assert fetched.read_bytes() == (shop.folder / "model.safetensors").read_bytes()
    assert xet_hub.count("GET", "xet-write-token") == 1 and xet_hub.count("GET", "xet-read-token") >= 1
    assert xet_hub.count("PUT") == 0 and xet_hub.count("POST", "lfs") == 0
