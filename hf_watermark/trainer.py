"""`WatermarkTrainer`: the only place that knows about loss scaling, processes and key handling."""

import hashlib
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import torch
from accelerate.utils import broadcast, broadcast_object_list
from huggingface_hub import HfApi
from torch import nn
from transformers import Trainer
from transformers.trainer_utils import HubStrategy
from transformers.utils.hub import PushInProgress

from .backbones import backbone_record, gathered_model
from .configuration import WatermarkConfig
from .evidence import Check, Evidence
from .hub import Extras, Published, publish
from .hub.precommit import FOLDER as PUBLIC_FOLDER
from .hub.publish import fetch_card
from .keys import (
    NO_BEACON,
    Claim,
    ModelContext,
    Opening,
    Owner,
    WatermarkKey,
    public_subkeys,
    refuse_keys_inside,
    start_digest,
)
from .keys.schedule import expand
from .serialization import InvalidInput, read_json, write_json_atomic
from .suspects import Suspect
from .triggers import without_rows
from .verifier import Verifier, verify_claims


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


class WatermarkTrainer(Trainer):
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
        # Signs the statement when the model is published; never saved.
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
        return os.urandom(32)

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

    # Saving

    def public_files(self) -> dict[str, dict[str, Any]]:
        """The public files of `watermark/`: the precommit, and once the mark was read back the sub-key that is opened on purpose."""
        files = {"precommit.json": self.key.precommit_document()}
        if self.evidence is not None and self.evidence.found:
            for index in public_subkeys([assignment.share for assignment in self.key.assignments]):
                files[f"subkey{index}.json"] = Opening.of(self.key, index).to_dict()
        return files

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir or ".")
        refuse_keys_inside(folder)
        super()._save(output_dir, state_dict)
        # A pickle that nothing reads back; it holds tokens in clear and would be pushed with the model.
        (folder / "training_args.bin").unlink(missing_ok=True)
        (folder / PUBLIC_FOLDER).mkdir(exist_ok=True)
        for name, document in self.public_files().items():
            write_json_atomic(folder / PUBLIC_FOLDER / name, document)

    # Publishing

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The card of the [`~transformers.Trainer`], unless the folder has one already: people write there."""
        if not (Path(self.args.output_dir or ".") / "README.md").exists():
            super().create_model_card(*args, **kwargs)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        owner: Owner | None = None,
        extras: Extras | None = None,
        include: Sequence[str] = (),
        license: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """
        Saves the model, reads the mark from the saved files, and publishes these files, `watermark/` and a card with a Watermark section in
        one atomic commit; see [`~hub.publish`]. The statement is signed by the owner that the trainer was made with, and left out where there
        is none or where the files do not hold the mark, whatever was read after training.

        Args:
            owner ([`Owner`], *optional*):
                Needed where the trainer was made with `key=`.
            extras ([`~hub.Extras`], *optional*):
                Fidelity, survival table, certificate, timestamps.
            include (`Sequence[str]`, *optional*):
                Files of other than the known kinds to publish, by their path in the output folder.
            license (`str`, *optional*):
                For the card, such as `apache-2.0`.
            kwargs (*optional*):
                For [`~transformers.Trainer.create_model_card`].

        Returns:
            [`~hub.Published`], or with `blocking=False` a future of it. `None` on all processes but the first.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        fetch_card(str(self.args.output_dir), str(self.hub_model_id), token, revision or self.args.hub_revision)
        name = kwargs.pop("model_name", None) or str(self.hub_model_id).split("/")[-1]
        tags = kwargs.pop("tags", None) or []
        tags = [tags] if isinstance(tags, str) else list(tags)
        self.create_model_card(
            model_name=name, tags=tags + list(getattr(self.model, "model_tags", None) or []), license=license, **kwargs
        )
        owner = owner or self._owner
        self._finish_current_push()

        def upload() -> Published:
            result = publish(
                str(self.args.output_dir),
                str(self.hub_model_id),
                self.key,
                owner,
                None if owner is None else self.verify,
                extras,
                token=token,
                revision=revision or self.args.hub_revision,
                message=commit_message or "End of training",
                include=include,
                license=license,
            )
            self._warn_of(result)
            return result

        return upload() if blocking else HfApi().run_as_future(upload)

    def _warn_of(self, result: Published) -> None:
        """Tells what the owner should know about a commit, first of all that it makes no claim."""
        for warning in result.warnings:
            logger.warning("%s: %s", result.repo_id, warning)
        if result.statement is not None:
            return
        if result.evidence is None:
            missing = "no `owner=` signs it"
        else:
            missing = f"the mark was not read back from the saved files ({result.evidence.reason})"
            if self.evidence is not None and self.evidence.found:
                missing += "; after training it was there, so the weights were replaced since"
        logger.warning("the model is published without a statement: %s", missing)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """A push during training: model and precommit, without any claim. The original would upload a pickle of the arguments."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and self.push_in_progress is not None and not self.push_in_progress.is_done():
            return
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        # A copy, because the next save may rewrite or delete the checkpoint while the upload runs. Pushes leave out names with `_`.
        copy = Path(str(self.args.output_dir)) / f"_push-{self.state.global_step}"
        shutil.copytree(
            checkpoint_folder, copy, ignore=shutil.ignore_patterns("*.pt", "*.pth", "*.bin"), dirs_exist_ok=True
        )

        def upload() -> Any:
            try:
                model_id, token, revision = str(self.hub_model_id), self.args.hub_token, self.args.hub_revision
                return publish(copy, model_id, self.key, token=token, revision=revision, message=message)
            finally:
                shutil.rmtree(copy)

        jobs: Any = [] if self.push_in_progress is None else self.push_in_progress.jobs
        self.push_in_progress: Any = PushInProgress([*jobs, HfApi().run_as_future(upload)])  # type: ignore[arg-type]


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
