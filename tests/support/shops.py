"""A marked model with its key and owner, made once, for the tests of publishing, checking and judging."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import torch
from authority import Authority, AuthorityServer
from cryptography import x509
from server import HubServer
from transformers import PreTrainedModel, ResNetConfig, ResNetForImageClassification, TrainingArguments

from hf_watermark import Evidence, GreedyResidualsConfig, GreedyResidualsTrainer, Owner, WatermarkKey, plan_key, verify
from hf_watermark.attacks import Permute
from hf_watermark.publishing import Extras, Fidelity, Precommit, publish
from hf_watermark.publishing.timestamp import token_beacon


@dataclass(frozen=True)
class Shop:
    """`folder` holds the saved model, `keys` the key; do not change them."""

    owner: Owner
    key: WatermarkKey
    folder: Path
    keys: Path
    evidence: Evidence

    def read(self, folder: Path) -> Evidence:
        """The mark in a folder; the owner believes himself about the beacon."""
        return verify(folder, self.key, beacon=self.key.beacon if any(self.key.beacon) else None)


def small_model(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    fields: dict[str, Any] = {"num_channels": 1, "embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 1]}
    model = ResNetForImageClassification(ResNetConfig(layer_type="basic", num_labels=10, **fields))
    for module in model.modules():
        # As after some training: otherwise all of them are the same vector of ones.
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def open_shop(
    place: Path,
    owner: Owner | None = None,
    bind: Callable[[WatermarkKey], WatermarkKey] = lambda key: key,
    model: PreTrainedModel | None = None,
    seed: int = 0,
) -> Shop:
    """
    Embeds three sub-keys of 256 bits by minimising the penalty alone, which takes a fraction of a second.

    Args:
        bind (`Callable`): What happens to the key before training.
        model (`PreTrainedModel`, *optional*): Start from this one: somebody else's, for example.
    """
    owner, model = owner or Owner.create(), model or small_model(seed)
    arguments = TrainingArguments(output_dir=str(place), use_cpu=True, report_to="none", save_strategy="no")
    config = GreedyResidualsConfig(bits=256, group_size=32, subkeys=3, strength=1.0)
    key = bind(plan_key(model, None, config, owner))
    trainer = GreedyResidualsTrainer(model=model, args=arguments, watermark=config, key=key)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        trainer.watermark_loss().backward()
        optimizer.step()
    model.save_pretrained(place / "model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        key.save(place / "key")
        owner.save(place / "owner.json")
    evidence = verify(place / "model", key, beacon=key.beacon if any(key.beacon) else None)
    assert evidence.found, evidence
    return Shop(owner, key, place / "model", place / "key", evidence)


CERTIFICATE = {
    "sigma": 0.1,
    "norm": "l2",
    "moves": "parameters",
    "triggers": 100,
    "draws": 1000,
    "confidence": 0.99,
    "radius": 0.5,
    "curves": {
        "0": [
            {"radius": 0.5, "accuracy": 0.985, "certified": True},
            {"radius": 1.0, "accuracy": None, "certified": False},
        ]
    },
}


@dataclass(frozen=True)
class Dated:
    """A published model whose precommit and statement two authorities dated; `folder` is a copy of the repository."""

    shop: Shop
    folder: Path
    authorities: tuple[Authority, Authority]
    roots: list[x509.Certificate]
    tokens: dict[str, bytes]


def publish_dated(
    place: Path,
    hub: HubServer,
    model_id: str = "me/model",
    extra: Mapping[str, Any] | None = None,
    stamped: datetime | None = None,
    **shopping: Any,
) -> Dated:
    """
    Precommit 30 days ago, its first token as the beacon, statement now, or stamped at another moment. `extra` goes into the statement,
    `shopping` into the shop.
    """
    authorities, tokens = (Authority("First"), Authority("Second")), {}

    def bind(key: WatermarkKey) -> WatermarkKey:
        for number, authority in enumerate(authorities):
            moment = datetime.now(UTC) - timedelta(days=30)
            tokens[f"precommit.{number}.tsr"] = authority.token(Precommit.of(key).stamped, moment)
        return key.bind_beacon(token_beacon(tokens["precommit.0.tsr"]), "rfc3161")

    shop = open_shop(place, bind=bind, **shopping)
    for authority in authorities:
        authority.now = stamped
    with AuthorityServer(authorities[0]) as first, AuthorityServer(authorities[1]) as second:
        extras = Extras(
            fidelity=Fidelity.of("digits", marked=0.93, twin=0.94, seeds=3),
            survival=[{"attack": "prune", "accuracy": 0.9, "log2_p": -200.4, "verdict": "mark found"}],
            certificates=[CERTIFICATE],
            timestamps=[first, second],
            precommit_tokens=tokens,
            **(extra or {}),
        )
        publish(shop.folder, model_id, shop.key, shop.owner, shop.read, extras)
    write_files(place / "repository", hub.files(model_id))
    return Dated(shop, place / "repository", authorities, [authority.root for authority in authorities], tokens)


def permuted(folder: Path, target: Path, seed: int = 0) -> Path:
    """The model in `folder` with its channels in another order: no answer changes. Saved in `target`."""
    model = ResNetForImageClassification.from_pretrained(folder)
    attacked = Permute(seed=seed)(model, [{"pixel_values": torch.randn(1, 32, 32)}])
    attacked.save_pretrained(target)
    return target


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
