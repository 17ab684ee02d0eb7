"""`Watermark`: marks in whatever loop calls it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from ..backbones import refuse_path, unwrapped
from ..evidence import Evidence
from ..keys import Owner, WatermarkKey, refuse_keys_inside, refuse_unloaded
from ..mapping import AutoEmbedding
from ..publishing.precommit import public_files, write_public_files
from ..serialization import InvalidInput
from ..training.closing import report
from ..training.embedding import Change, Embedding, Moment, TrainingData, unchanged
from ..training.keeping import kept_embeddings, warn_of_lost
from ..training.marks import Marks, key_for_all, process_count, process_rank
from ..training.preflight import refuse_uncarried
from .batches import LABELS, answers, as_mapping, in_form_of, training_data
from .keys import configs_of, plan_key
from .watching import SEPARATE, Loop, innermost, on_step, refuse_hidden, refuse_too_late


logger = logging.getLogger(__name__)


class Watermark:
    """
    Marks a model in a training loop of your own: plain PyTorch, Accelerate (DDP, FSDP2), Lightning, timm's script. For the Trainer of transformers
    there is [`WatermarkTrainer`].

    Make it before `accelerator.prepare` or `fully_shard`, with the model as it is before the first step. Where several processes train, make it
    in each of them once they know of each other (behind `Accelerator()` or `init_process_group`): the first one draws the key for all.

    A mark whose method only adds a penalty (`greedy_residuals`) takes two lines: this object, and `loss = loss + watermark.loss()`. The others
    say which of the calls below they miss, in a warning behind the first optimizer step and among the warnings of [`verify`]. A loop that calls all of them
    is good for every method, and for several at once.

    Args:
        model (`nn.Module`):
            The model that will train. DDP and `torch.compile` around it are looked through.
        config ([`WatermarkConfig`], `str` or `dict`, or a list of these, *optional*):
            One per method: an object, the method's name (its defaults), or a dict of fields with the name under `method`. By default the configs
            that `key` was made for.
        owner ([`Owner`], *optional*):
            Makes a fresh key for this model; `watermark.key` holds it and is never written by this object.
        key ([`WatermarkKey`], *optional*):
            An existing key instead: to resume a run, or after binding it to a beacon.
        data (map-style dataset or [`~training.embedding.TrainingData`], *optional*):
            The training data, which black-box methods need. Train on `watermark.data` instead: some rows are set aside for triggers. Items are
            mappings with `pixel_values` and `labels`, or pairs of image and label.
        steps (`int`, *optional*, defaults to 0):
            How many optimizer steps the training will take: needed by methods that begin or rise at a share of them.
        processor (*optional*):
            Image processor of the model: its normalisation is committed.
        keep (`Sequence[WatermarkKey]`, *optional*):
            Earlier keys whose marks the model carries, with methods among the configs: they are held, and [`verify`] says when one is lost.

    Attributes:
        key ([`WatermarkKey`]): Save it: it is in no checkpoint.
        evidence ([`Evidence`], *optional*): What [`verify`] read of the model last.

    Raises:
        `ValueError`: for an owner beside a key, or data or steps that a method needs and that are missing.
        [`~serialization.InvalidInput`]: when the mark does not fit into this model, weights that would carry it do not train, or the key was made for
            another run.

    Example:

    ```python
    >>> import torch
    >>> from torch.utils.data import DataLoader

    >>> watermark = Watermark(model, ["greedy_residuals", "watermas"], owner=owner, data=ds, steps=10)
    >>> optimizer = watermark.watch(torch.optim.SGD(model.parameters(), lr=0.1))
    >>> for batch in DataLoader(watermark.data, batch_size=40):
    ...     def step(change):
    ...         extended = watermark.extend(batch)
    ...         outputs = model(**extended)
    ...         loss = change(outputs.loss + watermark.loss(extended, outputs))
    ...         loss.backward()
    ...         return loss.detach()
    ...
    ...     loss = watermark.around_step(step)
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    >>> evidence = watermark.verify()
    >>> watermark.key.save("keys/of-this-model", passphrase="correct horse battery")
    ```
    """

    def __init__(
        self,
        model: nn.Module,
        config: Any = None,
        owner: Owner | None = None,
        key: WatermarkKey | None = None,
        data: Any = None,
        steps: int = 0,
        processor: Any = None,
        keep: Sequence[WatermarkKey] = (),
    ):
        if (owner is None) == (key is None):
            raise ValueError(
                "give exactly one of `owner=` (makes a fresh key; `Owner.create()` makes an owner) and `key=` (continues with an existing one)"
            )
        refuse_path(model)
        refuse_hidden(model)
        bare, given = unwrapped(model), training_data(data)
        if config is None and key is not None:
            config = [assignment.config for assignment in key.assignments]
        configs = configs_of(config)
        refuse_unloaded(*(("owner", owner, Owner) if key is None else ("key", key, WatermarkKey)))
        if owner is not None:
            refuse_too_late(bare)
        self._alone = process_count() == 1
        # Every process marks with the key of the first one.
        self.key = key_for_all(lambda: key or plan_key(bare, given, configs, cast(Owner, owner), processor=processor))
        if self.key.pool and data is None:
            raise ValueError("`data` is missing: give the training data that the triggers of this key were made from")
        kinds = [AutoEmbedding.for_method(item.method) for item in configs]
        self._marks = Marks(self.key, bare, kinds, configs, given)
        self._kinds, self._kept = kinds, tuple(keep)
        self._marks.embeddings += kept_embeddings(self._kept, kinds, bare, TrainingData(self.data, given.collate))
        self._loop = Loop(self._marks.embeddings, steps)
        self._in_step = self._own_steps = False
        self._rows = 0  # of the batch that `extend` returned, until its loss is asked for
        self.evidence: Evidence | None = None
        refuse_uncarried(self._marks.embeddings)
        self._marks.begin(Moment(0, steps, 0, process_rank()))
        for item in self._marks.embeddings:
            if item.counts_on_steps and steps < 1:
                raise ValueError(
                    f"`steps` is {steps}: `{item.method}` begins or rises at a share of the training; give the number of optimizer steps "
                    "that it will take"
                )

    @property
    def embeddings(self) -> list[Embedding]:
        """One per method, in the order of the configs."""
        return self._marks.embeddings

    @property
    def data(self) -> Any:
        """The training data without the rows that were set aside for triggers. Train on this."""
        return self._marks.data

    # In the loop

    def watch(self, optimizer: Any, scaler: Any = None) -> Any:
        """
        Follows the steps of an optimizer: methods count them, and some write to the weights behind each. Call it once, before the loop. Where several
        optimizers train the model, call it for each.

        Args:
            optimizer (`torch.optim.Optimizer`):
                Also one that Accelerate or Lightning has wrapped.
            scaler (`torch.amp.GradScaler`, *optional*):
                The gradient scaler, if it is not Accelerate's.

        Returns:
            The optimizer.

        Raises:
            [`~serialization.InvalidInput`]: when it is no optimizer, or one of DeepSpeed, or when processes that learnt of each other since have
                different keys.
        """
        inner = innermost(optimizer)
        if self._alone and process_count() > 1:
            self._alone = False
            if key_for_all(lambda: self.key).precommit != self.key.precommit:
                raise InvalidInput(SEPARATE)
        if all(inner is not known for known in self._loop.optimizers):
            self._loop.optimizers.append(inner)
            on_step(inner, partial(self._after_step, inner))
        self._loop.scaler = scaler or getattr(optimizer, "scaler", None) or self._loop.scaler
        return optimizer

    def _after_step(self, optimizer: Any) -> None:
        if self._in_step:
            raise ValueError("the optimizer stepped inside of `around_step`: step it behind, when all passes have run")
        self._marks.after_update()
        self._loop.called.add("after_update")
        if self._own_steps or not self._loop.begins_a_step(optimizer):
            return
        for sentence in self._loop.stepped():
            logger.warning("%s", sentence)

    def before_epoch(self, epoch: float, epochs: float) -> None:
        """Only for schedules that take optimizer steps of their own, as that of `CertifiedConfig(schedule="released")`."""
        self._begin("before_epoch")
        self._own_steps = True
        try:
            self._marks.before_epoch(epoch, epochs, self._loop.optimizers[0])
        finally:
            self._own_steps = False

    def around_step(self, step: Callable[[Change], torch.Tensor]) -> torch.Tensor:
        """
        Runs the forward and backward pass of one batch, once or several times, with what methods do around it.

        Args:
            step (`Callable`):
                `step(change)` computes the loss of the batch, replaces it by `change(loss)`, runs the backward pass and returns the loss, detached.
                It neither clears gradients nor steps the optimizer.

        Returns:
            `torch.Tensor`: the loss to report.

        Raises:
            `ValueError`: when `step` does not use `change`, or returns no loss.
        """
        self._begin("around_step")
        passes = 0

        def once(change: Change = unchanged) -> torch.Tensor:
            nonlocal passes
            passes += 1
            changed = False

            def used(loss: torch.Tensor) -> torch.Tensor:
                nonlocal changed
                changed = True
                return change(loss)

            loss = step(used)
            if not changed or not isinstance(loss, torch.Tensor):
                raise ValueError(
                    "`step` has to take its loss through `change`, `loss = change(loss)`, before the backward pass, and to return it"
                )
            return loss.detach()

        self._in_step = True
        try:
            return self._marks.around_step(once)
        finally:
            self._in_step = False
            self._loop.micro_step += 1
            self._loop.twice |= passes > 1

    def extend(self, batch: Any) -> Any:
        """
        The batch with the images that methods add, which come last. Give it to the model.

        Args:
            batch (`Mapping` or pair):
                `pixel_values` `[n, channels, height, width]` and `labels` `[n]` by these names, or as a pair of tensors.

        Returns:
            In the form of the batch that was given.

        Raises:
            [`~serialization.InvalidInput`]: for a batch of another form.
        """
        self._begin("extend")
        self._rows = 0  # a batch that is refused is none
        extended = self._marks.extend(as_mapping(batch))
        self._rows = len(extended[LABELS])
        return in_form_of(batch, extended)

    def loss(self, batch: Any = None, outputs: Any = None) -> torch.Tensor:
        """
        What is added to the mean loss of one batch. Where gradients of several batches are summed up, the sum of both is divided by their number, as
        `accelerator.backward` does: it has to count once per optimizer step.

        Args:
            batch (`Mapping` or pair, *optional*):
                What [`extend`] returned. May be left out, with the outputs, where methods only add penalties.
            outputs (*optional*):
                Of the model on this batch: logits `[n, classes]`, or anything of transformers that holds them.

        Returns:
            `torch.Tensor`: a scalar; zero where the task loss of the batch is the mark's loss as well.

        Raises:
            `ValueError`: when a method needs the batch and it was not given, was not extended, or the outputs are those of another batch.
        """
        self._begin("loss")
        device = next(self._marks.model.parameters()).device
        # Of mixed precision only the model's own pass, as in the Trainer.
        with torch.autocast(device.type, enabled=False):
            own = self._own_loss(batch, outputs)
        self._loop.micro_step += 0 if self._in_step else 1
        if own is None:
            return torch.zeros((), device=device)
        self._loop.weigh(own)
        return own

    def _own_loss(self, batch: Any, outputs: Any) -> torch.Tensor | None:
        if batch is not None and outputs is not None:
            return self._marks.loss(*self._checked(as_mapping(batch), answers(outputs)))
        needs = [item.method for item in self.embeddings if type(item).loss is not Embedding.loss]
        if needs:
            raise ValueError(
                f"`{needs[0]}` reads the answers of the batch: call `watermark.loss(batch, outputs)` with what `extend` returned"
            )
        return self._marks.penalty()

    def _checked(self, batch: Mapping[str, Any], outputs: Mapping[str, torch.Tensor]) -> tuple[Mapping[str, Any], Any]:
        """Batch and outputs of one `extend`, which every `loss` needs anew."""
        rows, self._rows = self._rows, 0
        extending = [item.method for item in self.embeddings if "extend" in item.required_calls()]
        if not rows and extending:
            raise ValueError(
                f"`{extending[0]}` needs each batch before the model sees it: `batch = watermark.extend(batch)`, then the model, then "
                "`watermark.loss(batch, outputs)`"
            )
        if not rows:
            self._marks.extend(batch)  # nothing is added
            rows = len(batch[LABELS])
        if len(batch[LABELS]) != rows or len(outputs["logits"]) < rows:
            raise ValueError(
                f"`loss` got {len(batch[LABELS])} images and {len(outputs['logits'])} answers, `extend` returned {rows} images: give model "
                "and `loss` the batch that it returned"
            )
        return batch, outputs

    def _begin(self, call: str) -> None:
        """Notes a call, and tells the methods where the training is."""
        self._loop.called.add(call)
        needs_steps = {"around_step", "extend", "after_update", "before_epoch"}
        for item in self.embeddings if not self._loop.optimizers else ():
            if item.counts_on_steps or item.required_calls() & needs_steps:
                raise ValueError(
                    f"`{item.method}` follows the optimizer: call `watermark.watch(optimizer)` before the loop"
                )
        self._marks.progress(Moment(self._loop.step, self._loop.steps, self._loop.micro_step, process_rank()))

    def logs(self) -> dict[str, float]:
        """Numbers of the methods since the last call, for a log."""
        return self._marks.logs()

    # Behind the loop

    def verify(self, suspect: Any = None) -> Evidence:
        """
        Evidence for `suspect` under this key, on the owner's own word. Where several processes train, all of them call it.

        Args:
            suspect (*optional*):
                As in [`verify`]; by default the model as it is now. Evidence for that is kept as `watermark.evidence`, and names the calls that the loop
                has left out among its warnings.
        """
        if suspect is not None:
            return self._marks.verify(suspect)
        self._marks.sync_buffers()
        self.evidence = evidence = self._marks.verify()
        problems = [*self._loop.problems(), *self._loop.unfinished()]
        evidence.warnings += problems
        report(self.key, evidence, self._marks.stronger(), problems)
        warn_of_lost(self._kept, self._kinds, self._marks.whole_model())
        return evidence

    def whole_model(self) -> nn.Module:
        """The model without wrappers, gathered where FSDP2 keeps shards. Where several processes train, all of them call it."""
        return self._marks.whole_model()

    def save_public_files(self, folder: str | Path) -> Evidence:
        """
        Writes `watermark/` into a folder to which the model was saved: the precommit, and, if the mark can be read from the files, the sub-key that is
        opened on purpose. The folder can then be published. Call it in the first process, when the files are there.

        Returns:
            [`Evidence`]: for the files.

        Raises:
            `ValueError`: when there is a key in the folder.
        """
        folder = Path(folder)
        refuse_keys_inside(folder)
        evidence = self._marks.verify(folder)
        if process_rank() == 0:
            write_public_files(folder, public_files(self.key, evidence.found))
        return evidence

    def state_dict(self) -> dict[str, Any]:
        """Where the training is, for a checkpoint, and nothing secret; see `accelerator.register_for_checkpointing`."""
        return {"step": self._loop.step, "precommit": self.key.precommit.hex(), "methods": self._marks.states()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """
        Goes on where a checkpoint was made.

        Raises:
            [`~serialization.InvalidInput`]: when it was made under another key.
        """
        if state.get("precommit") != self.key.precommit.hex():
            raise InvalidInput("the checkpoint was made under another key: load that key and give it as `key=`")
        self._loop.step = int(state["step"])
        moment = Moment(self._loop.step, self._loop.steps, 0, process_rank())
        self._marks.begin(moment, state.get("methods", []))
