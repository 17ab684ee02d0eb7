"""Marked models whose files are disguised, and a Hub to read them from. Nothing is downloaded."""

from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch
from client import connect
from disguises import Suspicion
from server import HubServer
from shops import Dated, open_shop, publish_dated
from transformers import AutoModelForImageClassification, ViTConfig, ViTForImageClassification


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        connect(monkeypatch, server.url, tmp_path / "hf_home")
        yield server
        huggingface_hub.close_session()


@pytest.fixture(scope="session")
def dated(tmp_path_factory: pytest.TempPathFactory) -> Dated:
    """A marked ResNet with everything that a judge asks for."""
    place = tmp_path_factory.mktemp("dated")
    with pytest.MonkeyPatch.context() as monkeypatch, HubServer() as server:
        connect(monkeypatch, server.url, place / "hf_home")
        return publish_dated(place, server)


@pytest.fixture(scope="session")
def resnet(dated: Dated) -> Suspicion:
    model = AutoModelForImageClassification.from_pretrained(dated.folder).eval()
    return Suspicion(model, dated.shop.key, dated.shop.key.beacon, dated)


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Suspicion:
    """A marked ViT of four blocks."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    config = ViTConfig(**sizes, image_size=32, patch_size=8, num_channels=1, num_labels=10)
    shop = open_shop(tmp_path_factory.mktemp("vit"), model=ViTForImageClassification(config))
    return Suspicion(ViTForImageClassification.from_pretrained(shop.folder).eval(), shop.key, None, None)
