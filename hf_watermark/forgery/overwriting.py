"""Overwriting: a thief embeds a key of his own into the stolen model and claims it."""

import copy
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PrinterCallback, TrainerCallback, TrainingArguments

from ..attacks.base import private_seed
from ..attacks.training import QUIET, collate
from ..configuration import WatermarkConfig
from ..keys import Owner
from ..mapping import AutoTrainer
from ..training.trainer import stack_trainers
from ..verifying import verify
from .result import ForgeryResult


def overwrite(
    model: PreTrainedModel,
    data: Any,
    forger: Owner,
    configs: Sequence[WatermarkConfig],
    epochs: float,
    learning_rate: float,
    batch_size: int = 64,
    seed: int = 0,
    callbacks: list[TrainerCallback] | None = None,
) -> ForgeryResult:
    """
    Embeds a second key into a copy of a marked model by an ordinary run of the watermark trainer, task loss included.

    The forger's key will be found in *his* copy: he did embed it there. What he must not reach is a claim on the model that
    he stole, and what he must not do is remove the first key; which of two keys was first is settled by their precommits.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The stolen model. It is not changed.
        data:
            Map-style training data of the forger: `{"pixel_values": [C, H, W], "labels": int}`.
        forger ([`Owner`]):
            Signs the second key.
        configs (`Sequence[WatermarkConfig]`):
            One config per method that the forger embeds.
        epochs (`float`):
            Passes over the data.
        learning_rate (`float`):
            Initial rate of AdamW, with cosine decay.

    Returns:
        [`ForgeryResult`]: `model` is the twice-marked copy and `key` the forger's key; `evidence` is the forger's claim on the
        stolen model, `details` what he reaches on his own copy.
    """
    trainer_class = stack_trainers(*[AutoTrainer.for_method(config.method) for config in configs])
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            seed=private_seed("overwrite", seed),
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            **QUIET,
            remove_unused_columns=False,
        )
        trainer = trainer_class(
            model=copy.deepcopy(model),
            args=arguments,
            train_dataset=data,
            data_collator=collate,
            callbacks=callbacks,
            watermark=list(configs),
            owner=forger,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    twice_marked: Any = trainer.model
    own: Any = trainer.evidence
    return ForgeryResult(
        name="overwrite",
        attempt="embeds a second key into the stolen model, then claims the stolen model with it",
        evidence=verify(model, trainer.key),
        details={
            "methods": [config.method for config in configs],
            "epochs": epochs,
            "learning_rate": learning_rate,
            "own_copy_verdict": str(own.verdict),
            "own_copy_log2_p": round(own.log2_p, 1),
        },
        model=twice_marked.eval(),
        key=trainer.key,
    )
