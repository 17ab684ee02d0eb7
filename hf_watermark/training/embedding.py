"""`Embedding`: how one mark gets into one model, whatever loop calls it."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import nn

from ..backbones import adapter_layers, evaluation_mode, located, logits_of, read_carriers
from ..configuration import WatermarkConfig
from ..evidence import Access
from ..keys import Claim, pool_digest
from ..serialization import InvalidInput
from ..suspects import Suspect
from ..verification.verifier import Verifier
from .course import Course, Forecast
from .feedback import Feedback
from .moment import Moment as Moment
from .triggers import undisturbed_random_state


logger = logging.getLogger(__name__)

Batch = Mapping[str, Any]
Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class TrainingData:
    """
    What a plan and an embedding may look at.

    Args:
        dataset (*optional*):
            Items by their number; `None` where the loop was only made to verify.
        collate (`Callable`, *optional*):
            Makes a batch of a list of items: `pixel_values` `[n, channels, height, width]` and `labels` `[n]`.
        set_aside (`frozenset[int]`):
            Rows that a key's pool took out of the data: nothing is trained on them.
    """

    dataset: Any = None
    collate: Any = None
    set_aside: frozenset[int] = frozenset()

    def __len__(self) -> int:
        """Number of rows that are trained on."""
        return len(self.dataset) - len(self.set_aside)

    def refuse_missing(self, what: str) -> None:
        if self.dataset is None:
            raise ValueError(f"`train_dataset` is missing; {what} made from it")

    def first(self) -> Any:
        """
        The batch of the first row.

        Raises:
            `ValueError`: for a stream, whose rows cannot be set aside.
        """
        if not hasattr(self.dataset, "__len__"):
            raise ValueError(
                "the training data is a stream; black-box marks need a map-style dataset (len and indexing)"
            )
        with undisturbed_random_state():
            return self.collate([self.dataset[0]])


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

    @classmethod
    def with_pool(cls, config: Any, layout: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> "Plan":
        """A plan whose pool holds these tensors, and whose layout commits to them."""
        pool = {f"{config.method}.{name}": tensor for name, tensor in tensors.items()}
        return cls(layout | {"pool_sha256": pool_digest(pool)}, config.subkeys, pool)


def unchanged(loss: torch.Tensor) -> torch.Tensor:
    """The loss as it is."""
    return loss


Step = Callable[..., torch.Tensor]
"""`step(change=unchanged)`: one forward and backward pass over the batch, with `change` applied to the loss; returns the loss, detached."""


class Embedding:
    """
    One claim's mark on its way into one model. A loop calls, in this order: `progress`, then `around_step` around its forward and backward
    passes, in each of them `extend` and `loss`, and `after_update` behind every optimizer step.

    Args:
        model (`nn.Module`):
            The bare model that trains: not the one that DDP or a compiler wrapped around it.
        claim ([`~keys.Claim`]):
            Parameters, sub-keys and pool of this method.
        data ([`TrainingData`], *optional*):
            Where triggers are made while training.

    Raises:
        [`~serialization.InvalidInput`]: when the key was made for another model or other data.

    Example:

    ```python
    >>> import torch
    >>> from hf_watermark.training.embedding import Moment, TrainingData
    >>> from transformers import default_data_collator

    >>> key = plan_key(model, ds, GreedyResidualsConfig(), owner)
    >>> embedding = GreedyResidualsEmbedding(model, key.claims()[0], TrainingData(ds, default_data_collator))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> for number in range(2):
    ...     batch = default_data_collator(ds[40 * number : 40 * (number + 1)])
    ...     embedding.progress(Moment(step=number, steps=2))
    ...
    ...     def step(change=lambda loss: loss):
    ...         extended = embedding.extend(batch)
    ...         outputs = model(**extended)
    ...         own = embedding.loss(extended, outputs)
    ...         loss = change(outputs.loss if own is None else outputs.loss + own)
    ...         loss.backward()
    ...         return loss.detach()
    ...
    ...     loss = embedding.around_step(step)
    ...     optimizer.step()
    ...     optimizer.zero_grad()
    ...     embedding.after_update()
    ```
    """

    verifier_class: ClassVar[type[Verifier]]
    writable: ClassVar[bool] = False
    """Whether [`write`] can put the mark into finished weights."""
    streams: ClassVar[bool] = False
    """Whether it can do so with one carrier after the other, the rest of the model being somewhere else."""
    marks_changes: ClassVar[bool] = False
    """Of a white-box method: whether it can mark what an adapter changes, where the weights themselves are not saved."""
    config_class: ClassVar[type[WatermarkConfig]]  # that of the verifier
    method: ClassVar[str]  # that of the config
    version: ClassVar[str] = "1"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "verifier_class" in vars(cls):
            cls.config_class, cls.method = cls.verifier_class.config_class, cls.verifier_class.method

    def __init__(self, model: nn.Module, claim: Claim, data: TrainingData = TrainingData()):
        self.model, self.claim, self.data = model, claim, data
        self.config: Any = self.config_class.from_dict(claim.assignment.config)
        self.moment = Moment()

    @property
    def counts_on_steps(self) -> bool:
        """Whether something begins or rises at a share of the planned steps."""
        return False

    def required_calls(self) -> set[str]:
        """Without which of its calls a loop embeds nothing, or less than it should: those that the method has made its own."""
        names = ("extend", "loss", "around_step", "after_update", "before_epoch")
        own = {name for name in names if getattr(type(self), name) is not getattr(Embedding, name)}
        return own | ({"loss"} if type(self).penalty is not Embedding.penalty else set())

    @classmethod
    def plan(cls, model: nn.Module, data: TrainingData, config: Any, secret: bytes) -> Plan:
        """
        What `config` becomes on this model and data; `secret` drives choices that end up in the pool.

        Raises:
            [`~serialization.InvalidInput`]: when the mark does not fit into this model.
            `ValueError`: when the data are missing, or hold too few images of a class.
        """
        raise NotImplementedError

    @classmethod
    def refuse_adapter(cls, model: nn.Module) -> None:
        """
        Raises:
            [`~serialization.InvalidInput`]: for a model with an adapter, where the method marks weights that are not saved with it.
        """
        if cls.verifier_class.access is Access.WEIGHTS and not cls.marks_changes and adapter_layers(model):
            raise InvalidInput(
                f"`{cls.method}` marks weights of the base, which an adapter does not save; merge the adapter first (`merge_and_unload`), or "
                "choose `greedy_residuals` or a method that is read from answers"
            )

    @cached_property
    def carriers(self) -> dict[str, str]:
        """Role of each live parameter that carries the mark, by its name when the embedding was made; empty where answers or an
        adapter carry it."""
        layout = self.claim.assignment.layout
        # What an adapter changes is no parameter of its own.
        if "carriers" not in layout or adapter_layers(self.model):
            return {}
        shapes = {name: tuple(weight.shape) for name, weight in self.model.named_parameters()}
        return {located(carrier, shapes).weight: carrier.role for carrier in read_carriers(layout)}

    def forecast(self, course: Course) -> Forecast | None:
        """The most of the mark that the rest of a training can put in, from the state of the model now; `None` where nothing limits it."""
        return None

    @cached_property
    def feedback(self) -> Feedback | None:
        """How strongly the mark is taught, where the model's answers decide it."""
        return None

    @property
    def taught(self) -> float:
        """Strength of the mark's lessons now, as a share of what the config allows."""
        return 1.0 if self.feedback is None else self.feedback.strength

    def begin(self, moment: Moment, state: Mapping[str, Any]) -> None:
        """Told before the first step of a training; of one that goes on, `state` is what [`state`] was at its checkpoint."""
        self.moment = moment
        said = None if self.feedback is None else self.feedback.begin(state)
        if said is not None:
            logger.warning("`%s`: %s", self.method, said)

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs, as plain JSON and nothing secret."""
        return {} if self.feedback is None else self.feedback.state()

    def progress(self, moment: Moment) -> None:
        """Told before every step where the training is."""
        self.moment = moment
        if self.feedback is not None:
            said = self.feedback.look(moment)
            if said is not None:
                logger.warning("`%s`: %s", self.method, said)

    @property
    def in_weights(self) -> bool:
        """Whether weights carry the mark, and not answers."""
        return self.verifier_class.access is Access.WEIGHTS

    def read_now(self, model: nn.Module | None = None) -> tuple[float, float, float | None]:
        """
        The mark in the model as it is (`model` where that is gathered), without decoys: log2 p of the weakest sub-key, share of right units, and of
        a mark in answers the share of the pool's images that get their class.
        """
        model = self.model if model is None else model
        verifier = self.verifier_class(self.claim)
        with evaluation_mode(model), torch.no_grad():
            answer = partial(_probabilities, model)
            suspect = Suspect.open(model if self.in_weights else answer)
            parts = [verifier.score(verifier.observe(suspect, item), item) for item in self.claim.subkeys]
            accuracy = None
            images, labels = (self.claim.pool.get(f"{self.method}.{name}") for name in ("images", "labels"))
            if images is not None and labels is not None and bool((labels >= 0).all()):
                shown = torch.cat([answer(batch.float()) for batch in images.split(64)]).argmax(dim=1)
                accuracy = float((shown == labels).float().mean())
        right = sum(part.matches for part in parts) / max(1, sum(part.trials for part in parts))
        return max(part.log2_p for part in parts), right, accuracy

    def before_epoch(self, epoch: float, epochs: float, optimizer: Any, sync_buffers: Callable[[], None]) -> None:
        """For schedules that take optimizer steps of their own; `sync_buffers` gives all processes the same statistics."""

    def around_step(self, step: Step) -> torch.Tensor:
        """Runs `step` once or several times, and returns the loss to report."""
        return step()

    def extend(self, batch: Batch) -> Batch:
        """The batch with what this method adds: new rows come last, the batch given stays as it is."""
        return batch

    def penalty(self) -> torch.Tensor | None:
        """What is added to the loss whatever the batch is; `None` when there is nothing."""
        return None

    def loss(self, batch: Batch, outputs: Any) -> torch.Tensor | None:
        """
        What is added to the task loss of one batch, counted once per optimizer step.

        Args:
            batch (`Mapping`):
                What `extend` of this method returned.
            outputs (`Mapping`):
                Of the model on this batch, followed by the rows of other methods; `logits` `[n, classes]` or more.
        """
        return self.penalty()

    def after_update(self) -> None:
        """Called when the optimizer has changed the weights."""

    def write(self, only: str | None = None) -> dict[str, torch.Tensor]:
        """
        Writes the mark into the model as it stands, without training. Called again it mends what has been lost, and nothing else.

        Args:
            only (`str`, *optional*):
                Name of one carrier; the others are neither read nor written. For methods that `streams`.

        Returns:
            `dict[str, torch.Tensor]`: by the name of each changed weight, `[rows, columns]`, true where the mark lies. What else stands in
            these rows may be changed a little afterwards.

        Raises:
            [`~serialization.InvalidInput`]: when these weights cannot hold it.
        """
        raise NotImplementedError

    def logs(self) -> dict[str, float]:
        """Numbers since the last call, for the log of the training."""
        return {}


class Extended(dict[str, Any]):
    """
    A batch behind whose rows a method appended others.

    Args:
        own (`int`): How many rows are the task's own; they come first.
    """

    def __init__(self, batch: Batch, own: int):
        super().__init__(batch)
        self.own = own


def task_rows(batch: Batch) -> int:
    """Number of the task's own rows in a batch: what methods appended is no picture of the class that it is labelled with."""
    return batch.own if isinstance(batch, Extended) else len(batch["labels"])


def own_logits(batch: Batch, outputs: Any) -> torch.Tensor:
    """Logits of the rows of `batch`, `[n, classes]`, without those that other methods appended."""
    return logits_of(outputs)[: len(batch["labels"])]


def _probabilities(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Of images `[n, channels, height, width]`, `[n, classes]` on the CPU."""
    weight = next(model.parameters())
    images = images.to(weight.device, weight.dtype)
    return logits_of(model(pixel_values=images)).float().softmax(dim=1).cpu()


def label_count(model: nn.Module) -> int:
    """
    Number of classes that the model answers with.

    Raises:
        [`~serialization.InvalidInput`]: when it does not say.
    """
    found = getattr(getattr(model, "config", None), "num_labels", None)
    if found is None:  # nets of timm
        found = getattr(model, "num_classes", None)
    if not isinstance(found, int):
        raise InvalidInput(
            "the model does not say how many classes it answers with: set `model.num_classes`, or use a model of transformers or timm"
        )
    return found


def refuse_other_classes(classes: int, model: nn.Module) -> None:
    if label_count(model) != classes:
        raise InvalidInput(
            f"the key was made for {classes} classes, this model has {label_count(model)}; make a fresh key"
        )


def nested(embedding: Embedding, inner: Step) -> Step:
    """`inner` with what `embedding` does around it; several embeddings nest."""

    def step(change: Change = unchanged) -> torch.Tensor:
        return embedding.around_step(lambda own=unchanged: inner(lambda loss: change(own(loss))))

    return step
