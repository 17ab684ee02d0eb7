"""`Marks`: the embeddings of one key in one model, called as one by whatever loop trains it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from ..backbones import gathered_model, unwrapped
from ..configuration import WatermarkConfig
from ..evidence import Evidence
from ..keys import Claim, WatermarkKey
from ..serialization import InvalidInput
from .embedding import Batch, Embedding, Moment, Step, TrainingData, nested
from .keeping import read_back
from .triggers import without_rows


Kind = TypeVar("Kind", bound=Embedding)


class Marks:
    """
    Args:
        key ([`WatermarkKey`]):
            One claim per method.
        model (`nn.Module`):
            The model that trains; wrappers around it are looked through.
        kinds (`Sequence[type[Embedding]]`):
            One per method: they are called in this order.
        configs (`Sequence[WatermarkConfig]`):
            What the loop is to embed, which has to be what the key was made for.
        data ([`TrainingData`]):
            As it was given. All methods count its rows, also those that a pool takes out.

    Raises:
        [`~serialization.InvalidInput`]: when the key was made for other methods, configs, data, or another model.
    """

    def __init__(
        self,
        key: WatermarkKey,
        model: nn.Module,
        kinds: Sequence[type[Embedding]],
        configs: Sequence[WatermarkConfig],
        data: TrainingData,
    ):
        claims = _claims(key, configs)
        named = [rows.tolist() for name, rows in key.pool.items() if name.endswith(".rows")]
        data = replace(data, set_aside=frozenset(row for rows in named for row in rows))
        self.key, self.model, self._data = key, unwrapped(model), data
        self.embeddings = [kind(self.model, claims[kind.method], data) for kind in kinds]
        self._rows: list[int] = []  # of the batch behind each `extend`

    def embedding(self, kind: type[Kind]) -> Kind:
        """The embedding of one method."""
        return next(item for item in self.embeddings if isinstance(item, kind))

    @property
    def data(self) -> Any:
        """The data without the rows that a pool took out: what is trained on."""
        if self._data.dataset is None or not self._data.set_aside:
            return self._data.dataset
        return without_rows(self._data.dataset, sorted(self._data.set_aside))

    # What a loop calls

    def begin(self, moment: Moment, states: Sequence[Mapping[str, Any]] = ()) -> None:
        """Tells every method that a training begins, or goes on where a checkpoint with these [`states`] was made."""
        for number, item in enumerate(self.embeddings):
            item.begin(moment, states[number] if number < len(states) else {})

    def states(self) -> list[dict[str, Any]]:
        """What a checkpoint needs of each method: plain JSON, nothing secret."""
        return [item.state() for item in self.embeddings]

    def progress(self, moment: Moment) -> None:
        """Tells every method where the training is."""
        for item in self.embeddings:
            item.progress(moment)

    def before_epoch(self, epoch: float, epochs: float, optimizer: Any) -> None:
        """For schedules that take optimizer steps of their own."""
        for item in self.embeddings:
            item.before_epoch(epoch, epochs, optimizer, self.sync_buffers)

    def around_step(self, step: Step) -> torch.Tensor:
        """`step` with what every method does around it."""
        around = step
        for item in reversed(self.embeddings):
            around = nested(item, around)
        return around()

    def extend(self, batch: Batch) -> Batch:
        """The batch with what every method adds."""
        self._rows = []
        for item in self.embeddings:
            batch = item.extend(batch)
            self._rows.append(len(batch["labels"]) if "labels" in batch else 0)
        return batch

    def loss(self, batch: Batch, outputs: Any) -> torch.Tensor | None:
        """What the methods add to the task loss of a batch that `extend` returned; `None` when there is nothing."""
        losses = [
            item.loss(first_rows(batch, rows), outputs) for item, rows in zip(self.embeddings, self._rows, strict=True)
        ]
        return _sum(losses)

    def penalty(self) -> torch.Tensor | None:
        """What the methods add to the loss whatever the batch is; `None` when there is nothing."""
        return _sum([item.penalty() for item in self.embeddings])

    def after_update(self) -> None:
        """Called when the optimizer has changed the weights."""
        for item in self.embeddings:
            item.after_update()

    def logs(self, taken: Collection[str] = ()) -> dict[str, float]:
        """Numbers since the last call; a name that is taken gets the method behind it."""
        logs: dict[str, float] = {}
        for item in self.embeddings:
            own = item.logs() | (item.feedback.logs() if item.feedback is not None else {})
            for name, value in own.items():
                logs[f"{name}_{item.method}" if name in logs or name in taken else name] = value
        return logs

    # What was embedded

    def sync_buffers(self) -> None:
        """Gives every process the BatchNorm statistics of the first one, which are those that are saved."""
        if process_count() > 1:
            for buffer in self.model.buffers():
                distributed.broadcast(buffer, src=0)

    def whole_model(self) -> nn.Module:
        """The model, gathered where FSDP2 keeps shards: for code that copies or changes modules."""
        return gathered_model(self.model, self.key.backbone)

    def verify(self, suspect: Any = None) -> Evidence:
        """Evidence for `suspect`, by default the model as it is now, on the owner's own word."""
        source = self.whole_model() if suspect is None else suspect
        verifiers = {item.method: item.verifier_class for item in self.embeddings}
        return read_back(self.key, source, verifiers.__getitem__)

    def readings(self) -> dict[str, float]:
        """log2 p of each method in the model as it is now, of its weakest sub-key; the keys that are kept count too."""
        found: dict[str, float] = {}
        for item in self.embeddings:
            value = item.read_now(self.whole_model() if item.in_weights else item.model)[0]
            found[item.method] = max(value, found.get(item.method, value))
        return found

    def stronger(self) -> str:
        """What can be raised of each config where a mark was not read back, in words."""
        fields = [(item.config, item.method) for item in self.embeddings]
        return "; ".join(
            f"{' or '.join(f'`{name}`' for name in config.stronger if hasattr(config, name))} of `{method}`"
            for config, method in fields
        )


def _claims(key: WatermarkKey, configs: Sequence[WatermarkConfig]) -> dict[str, Claim]:
    """The claims of a key by method, if they are those of the configs."""
    claims = {claim.assignment.method: claim for claim in key.claims()}
    if sorted(claims) != sorted(config.method for config in configs):
        raise InvalidInput(
            f"this key marks with {sorted(claims)}, this run with {sorted(config.method for config in configs)}; give the key of this run"
        )
    for config in configs:
        committed = claims[config.method].assignment.config
        if committed != config.to_dict():
            raise InvalidInput(
                f"the key was made for another `{config.method}` config: {committed}; give that one, or leave out the config"
            )
    return claims


def _sum(losses: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    known = [loss for loss in losses if loss is not None]
    return sum((loss.to(known[0].device) for loss in known[1:]), known[0]) if known else None


def first_rows(batch: Batch, rows: int) -> Batch:
    """The first rows of each tensor that has one row per image."""
    count = len(batch["labels"]) if "labels" in batch else 0
    if rows == count:
        return batch
    return {
        name: value[:rows] if isinstance(value, torch.Tensor) and value.ndim and len(value) == count else value
        for name, value in batch.items()
    }


def carrier_parameters(item: Embedding) -> list[nn.Parameter]:
    """The parameters that a mark in the weights lies in; of other marks all parameters of the model."""
    return [item.model.get_parameter(name) for name in item.carriers] or list(item.model.parameters())


# Processes


def process_count() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def process_rank() -> int:
    return distributed.get_rank() if process_count() > 1 else 0


def key_for_all(make: Callable[[], WatermarkKey]) -> WatermarkKey:
    """The key that the first process makes, in every process."""
    box: list[Any] = [make() if process_rank() == 0 else None]
    if process_count() > 1:
        distributed.broadcast_object_list(box, src=0)
    key: WatermarkKey = box[0]
    return key


__all__ = ["Marks", "carrier_parameters", "first_rows", "key_for_all", "process_count", "process_rank"]
