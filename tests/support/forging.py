"""What a forger has at hand: his own keys, statements written by hand, and other people's models."""

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tiny import patterned_images, tiny_resnet, training_arguments
from transformers import PreTrainedModel, Trainer

from hf_watermark import Evidence, GreedyResidualsConfig, GreedyResidualsTrainer, Owner, Verdict, WatermarkKey, verify
from hf_watermark.claims import Disclosure, judge
from hf_watermark.evidence import Access, combine, single
from hf_watermark.publishing.describe import Extras, describe
from hf_watermark.publishing.precommit import PRECOMMIT, Precommit
from hf_watermark.publishing.statement import STATEMENT, SignedStatement


NONCE = "court-1"


@dataclass(frozen=True)
class Claimant:
    """A published model with the key behind it; `folder` is the repository."""

    owner: Owner
    key: WatermarkKey
    model: PreTrainedModel
    folder: Path

    def open(self, index: int, nonce: str = NONCE) -> Disclosure:
        return Disclosure.make(self.key, self.owner, index, nonce)


def innocent_model(place: Path, seed: int = 3) -> PreTrainedModel:
    """A trained classifier that never saw a mark."""
    torch.manual_seed(seed)
    model = tiny_resnet()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    trainer = Trainer(model=model, args=training_arguments(place, max_steps=60), train_dataset=patterned_images())
    trainer.train()
    return trainer.model.eval()


def honest_claimant(place: Path, seed: int = 0) -> Claimant:
    """Three sub-keys embedded by the penalty alone, published with a statement; no dates, so level N is asked for."""
    owner, model = Owner.create(), tiny_resnet(hidden_sizes=[32, 64])
    arguments = training_arguments(place / "run")
    config = GreedyResidualsConfig(bits=256, group_size=24, subkeys=3, strength=1.0)
    trainer = GreedyResidualsTrainer(model=model, args=arguments, watermark=config, owner=owner)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        trainer.watermark_loss().backward()
        optimizer.step()
    publish_by_hand(place / "model", model, trainer.key, owner)
    return Claimant(owner, trainer.key, model.eval(), place / "model")


def publish_by_hand(
    folder: Path,
    model: PreTrainedModel,
    key: WatermarkKey,
    owner: Owner,
    edit: Callable[[dict[str, Any]], None] = lambda statement: None,
    model_id: str = "claimant/model",
) -> Path:
    """Model, precommit and a signed statement that claims whatever its author likes; nothing is verified here."""
    model.save_pretrained(folder)
    parts = [
        combine([single(item.method, 256, 256, -256.0, "claimed", Access.WEIGHTS)], item.method)
        for item in key.assignments
    ]
    evidence = parts[0] if len(parts) == 1 else combine(parts, "combined")
    evidence.log2_p = -256.0
    files = {path.name: path for path in folder.iterdir() if path.is_file()}
    statement = describe(files, folder, model_id, key, evidence, Extras(), {}, None).plain()
    edit(statement)
    return sign_by_hand(folder, statement, owner, Precommit.of(key).to_bytes())


def sign_by_hand(folder: Path, statement: dict[str, Any], owner: Owner, precommit: bytes) -> Path:
    from hf_watermark.publishing.statement import DOMAIN
    from hf_watermark.serialization import canonical_json

    (folder / "watermark").mkdir(exist_ok=True)
    (folder / PRECOMMIT).write_bytes(precommit)
    signature = owner.sign(DOMAIN + canonical_json(statement)).hex()
    document = {"statement": statement, "signature": signature, "timestamps": []}
    (folder / STATEMENT).write_bytes(json.dumps(document).encode())
    return folder


def read_statement(folder: Path) -> dict[str, Any]:
    return SignedStatement.parse((folder / STATEMENT).read_bytes()).statement.plain()


def saved(key: WatermarkKey, folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return key.save(folder)


def edited_payload(folder: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """A key folder whose JSON was changed and sealed again: the envelope keeps strangers out, not its owner."""
    from hf_watermark.keys.envelope import read_envelope, write_envelope

    payload = read_envelope(folder / "key.json", None)
    edit(payload)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_envelope(folder / "key.json", payload, None, True)
    return folder


def ruling(claimant: Claimant, disclosure: Disclosure, suspect: Any, **fields: Any) -> Any:
    return judge(disclosure, suspect, fields.pop("statement", claimant.folder), **{"nonce": NONCE} | fields)


def refused(evidence: Evidence) -> bool:
    """Whether nobody who reads this verdict would take the suspect for a marked model."""
    return evidence.verdict is not Verdict.FOUND


__all__ = ["NONCE", "Claimant", "edited_payload", "honest_claimant", "innocent_model", "publish_by_hand", "verify"]
