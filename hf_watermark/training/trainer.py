"""`WatermarkTrainer`: the only place that knows about loss scaling, processes and key handling."""

import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import torch
from accelerate.utils import broadcast, broadcast_object_list
from torch import nn
from transformers.trainer_utils import HubStrategy

from ..backbones import backbone_record, gathered_model
from ..configuration import WatermarkConfig
from ..evidence import Check, Evidence
from ..keys import (
    NO_BEACON,
    Claim,
    ModelContext,
    Owner,
    WatermarkKey,
    entropy,
    start_digest,
)
from ..keys.schedule import expand
from ..serialization import InvalidInput, read_json
from ..suspects import Suspect
from ..verification.verifier import Verifier, verify_claims
from .publishing import PUBLIC_FOLDER, PublishingTrainer
from .triggers import without_rows


logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=WatermarkConfig)


@dataclass
class Plan:
    """
    What a method's config becomes on one backbone.

    Args:
        layout (`dict`):
            Public JSON that a verifier needs beside the sub-keys.
        subkeys (`int`):
            Number of sub-keys to embed.
        pool (`dict[str, torch.Tensor]`):
            Source images of triggers. A tensor `"<method>.rows"` names the rows of the training data that they are: nothing
            is trained on them.
    """

    layout: dict[str, Any]
    subkeys: int
    pool: dict[str, torch.Tensor] = field(default_factory=dict)


class WatermarkTrainer(PublishingTrainer):
    """
    [`~transformers.Trainer`] that embeds a mark while it trains. Use a method's trainer, or several stacked with
    [`stack_trainers`].

    Args:
        watermark ([`WatermarkConfig`] or `list[WatermarkConfig]`):
            Config of the method, or one per stacked method.
        owner ([`Owner`], *optional*):
            Makes a fresh key for this model; `trainer.key` holds it and is never written by the trainer.
        key ([`WatermarkKey`], *optional*):
            An existing key instead: to resume a run, or after binding it to a beacon.
    """

    method: ClassVar[str]
    version: ClassVar[str] = "1"
    config_class: ClassVar[type[WatermarkConfig]]
    verifier_class: ClassVar[type[Verifier]]

    def __init__(
        self,
        *args: Any,
        watermark: WatermarkConfig | list[WatermarkConfig],
        owner: Owner | None = None,
        key: WatermarkKey | None = None,
        **kwargs: Any,
    ):
        if (owner is None) == (key is None):
            raise ValueError(
                "give exactly one of `owner=` (makes a fresh key) and `key=` (continues with an existing one)"
            )
        super().__init__(*args, **kwargs)
        # Most vision models take **kwargs in `forward` and ignore `num_items_in_batch`; the Trainer would then scale their loss by
        # accumulation steps x processes. As a per-batch mean, task loss and penalty both come out exactly once per step.
        self.model_accepts_loss_kwargs = False
        if self.is_deepspeed_enabled or self.is_fsdp_enabled and not self.accelerator.is_fsdp2:
            raise ValueError(
                "DeepSpeed and FSDP1 hide the weights outside `forward`; use DDP or FSDP2 (`fsdp_version: 2`)"
            )
        if self.args.push_to_hub and self.args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise ValueError(
                f"`hub_strategy` is {str(self.args.hub_strategy)!r}: it uploads pickles of the training state; choose 'end' or 'every_save'"
            )
        self.watermark = self._configs(watermark)
        self.evidence: Evidence | None = None
        self._micro_step = 0
        self._owner = owner
        if key is None:
            key = self._create_key(cast(Owner, owner))
        self.key: WatermarkKey = key
        self._attach(key)

    # Methods stacked in this trainer

    @classmethod
    def method_classes(cls) -> list[type["WatermarkTrainer"]]:
        """The method trainers of this class, in the order in which they were stacked."""
        return [base for base in cls.__mro__ if issubclass(base, WatermarkTrainer) and "method" in vars(base)]

    def _configs(self, watermark: WatermarkConfig | list[WatermarkConfig]) -> dict[str, WatermarkConfig]:
        given = watermark if isinstance(watermark, list) else [watermark]
        configs = {config.method: config for config in given}
        wanted = [cls.method for cls in self.method_classes()]
        if sorted(configs) != sorted(wanted) or len(given) != len(wanted):
            raise ValueError(
                f"`watermark` holds configs for {sorted(config.method for config in given)}, {type(self).__name__} needs one for "
                f"each of {sorted(wanted)}"
            )
        return configs

    def config_of(self, config_class: type[Config]) -> Config:
        return cast(Config, self.watermark[config_class.method])

    def plan(self, config: Any, secret: bytes) -> Plan:
        """What `config` becomes on this model and data; `secret` drives choices that end up in the pool. One per method class."""
        raise NotImplementedError

    def attach(self, claim: Claim) -> None:
        """Prepares embedding from the key. One per method class."""
        raise NotImplementedError

    def _key_seed(self) -> bytes:
        return entropy.draw(32)

    def _create_key(self, owner: Owner) -> WatermarkKey:
        # Rank 0 draws the key, everybody embeds the same one.
        box: list[Any] = [None]
        if self.accelerator.is_main_process:
            seed, plans, pool = self._key_seed(), [], {}
            for cls in self.method_classes():
                config = self.watermark[cls.method]
                plan = cls.plan(self, config, expand(seed, b"hfwm/v2/pool", cls.method.encode()))
                plans.append((cls.method, cls.version, config.to_dict(), plan.layout, plan.subkeys))
                pool.update(plan.pool)
            box[0] = WatermarkKey.create(owner, plans, seed=seed, context=self._context(), pool=pool)
        if self.accelerator.num_processes > 1:
            broadcast_object_list(box)
        return cast(WatermarkKey, box[0])

    def _context(self) -> ModelContext:
        """What the key commits about the model; the normalisation is that of the image processor, if the trainer was given one."""
        processor: Any = self.processing_class
        mean, std = (getattr(processor, f"image_{name}", None) for name in ("mean", "std"))
        if mean is None or std is None or not getattr(processor, "do_normalize", True):
            mean = std = None
        model = self._bare_model()
        return ModelContext.of(backbone_record(model), mean, std, start=start_digest(model.state_dict()))

    def _attach(self, key: WatermarkKey) -> None:
        claims = {claim.assignment.method: claim for claim in key.claims()}
        if sorted(claims) != sorted(self.watermark):
            raise InvalidInput(
                f"this key marks with {sorted(claims)}, this trainer with {sorted(self.watermark)}; give the key of this run"
            )
        named = [rows.tolist() for name, rows in key.pool.items() if name.endswith(".rows")]
        self.rows_set_aside = frozenset(row for rows in named for row in rows)
        for cls in self.method_classes():
            claim = claims[cls.method]
            committed = claim.assignment.config
            if committed != self.watermark[cls.method].to_dict():
                raise InvalidInput(f"the key was made for another `{cls.method}` config: {committed}")
            cls.attach(self, claim)
        # Once, after every stacked method has looked: all rows count in the data as it was given.
        if self.rows_set_aside and self.train_dataset is not None:
            self.train_dataset = without_rows(self.train_dataset, sorted(self.rows_set_aside))

    def sync_buffers(self) -> None:
        """Gives every process the BatchNorm statistics of the first one, which are those that are saved."""
        if self.accelerator.num_processes > 1:
            for buffer in self._bare_model().buffers():
                broadcast(buffer)

    def _bare_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(cast(nn.Module, self.model))

    def _whole_model(self) -> nn.Module:
        """The bare model, gathered where FSDP2 keeps shards: for code that copies or changes modules."""
        return gathered_model(self._bare_model(), self.key.backbone)

    # Training

    def watermark_loss(self) -> torch.Tensor | None:
        """Penalty added once per optimizer step in effect; `None` when there is none. Stacked methods add up through `super()`."""
        return None

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._micro_step = 0 if self.accelerator.sync_gradients else self._micro_step + 1
        return loss

    def step_seed(self, secret: bytes, purpose: bytes, process: int = 0) -> int:
        """A 63-bit seed that is a function of the step alone, so that a resumed run draws what the uninterrupted one would have."""
        place = f"{self.state.global_step}/{self._micro_step}/{process}".encode()
        return int.from_bytes(hashlib.sha256(secret + purpose + place).digest()[:8], "big") >> 1

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        result: Any = super().compute_loss(
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
        )
        penalty = self.watermark_loss() if model.training else None
        if penalty is None:
            return result
        if return_outputs:
            loss, outputs = result
            return loss + penalty.to(loss.device), outputs
        return result + penalty.to(result.device)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Trains, then checks the mark itself: a mark that cannot be read back is reported and not published."""
        self._refuse_other_key(resume_from_checkpoint)
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        self.sync_buffers()
        self.evidence = self.verify()
        self.log({"watermark_log2_p": self.evidence.log2_p, "watermark_match_rate": self.evidence.rate})
        if not self.evidence.found:
            logger.warning(
                "the mark could not be read back from the trained model (%s); do not claim this model. Train longer, or raise "
                "`strength` or the number of sub-keys.",
                self.evidence.reason,
            )
        return output

    def _refuse_other_key(self, resume_from_checkpoint: str | bool | None) -> None:
        if not resume_from_checkpoint:
            return
        from transformers.trainer_utils import get_last_checkpoint

        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        published = Path(str(folder)) / PUBLIC_FOLDER / "precommit.json"
        if published.exists() and read_json(published).get("precommit") != self.key.precommit.hex():
            raise InvalidInput(
                f"{folder} was trained under another key; load that key and pass it: key=WatermarkKey.load('keys/...')"
            )

    def verify(self, suspect: Any = None) -> Evidence:
        """
        Evidence for `suspect` (the model in training by default) under `trainer.key`.
        """
        source = self._whole_model() if suspect is None else suspect
        verifiers = {cls.method: cls.verifier_class for cls in self.method_classes()}
        claims = [verifiers[claim.assignment.method](claim) for claim in self.key.claims()]
        check = Check(bound=self.key.beacon != NO_BEACON, disclosed=self.key.disclosed)
        return verify_claims(claims, Suspect.open(source, self.key.backbone), check)


def stack_trainers(*classes: type[WatermarkTrainer]) -> type[WatermarkTrainer]:
    """
    One trainer class that embeds the marks of several methods.

    Example:

    ```python
    >>> Stacked = stack_trainers(GreedyResidualsTrainer, FunctionCoupledTrainer)
    >>> trainer = Stacked(model=model, args=args, train_dataset=ds, watermark=[GreedyResidualsConfig(), FunctionCoupledConfig()], owner=owner)
    ```
    """
    if len(set(classes)) != len(classes) or not classes:
        raise ValueError(f"stack_trainers needs different trainer classes, got {[cls.__name__ for cls in classes]}")
    return type("Stacked" + "".join(cls.__name__.removesuffix("Trainer") for cls in classes) + "Trainer", classes, {})


__all__ = ["PUBLIC_FOLDER", "Plan", "WatermarkTrainer", "stack_trainers"]
