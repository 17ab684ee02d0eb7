"""
Extraction: a new model is trained on answers that were bought from the model, as if it stood behind an address.

`KnockoffNets` of adversarial-robustness-toolbox needs estimators with numpy copies and an optimizer of their own; these
attacks train through `Trainer` like all others.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import PreTrainedModel

from .base import private_seed, spent
from .distillation import fresh_copy, other_architecture
from .generator import extract
from .training import TrainingAttack


@dataclass
class Knockoff(TrainingAttack):
    """
    Ask the model about each image of a set once, a set of another origin if need be, and train a fresh student on the answers
    (Orekondy et al., https://huggingface.co/papers/1812.02766). Labels of the images are not read. The options of
    [`TrainingAttack`], here with AdamW and a cosine schedule, and:

    Args:
        answers (`str`, *optional*, defaults to `"probabilities"`):
            What is bought: `"probabilities"` or `"labels"`.
        images ([`ImageDataset`], *optional*):
            Images to ask about, in place of the data given to the call; made in Python.
        queries (`int`, *optional*):
            Most answers to buy; by default one per image and view.
        views (`int`, *optional*, defaults to 1):
            Ask about so many versions of each image, shifted by up to an eighth of its side, and train on the mean of their
            answers (smooth retraining): an answer that hangs on single pixels is averaged away.
        student (`str`, *optional*, defaults to `"same"`):
            `"same"` architecture or `"other"`, as in [`Distill`].
    """

    name: ClassVar[str] = "knockoff"
    reads_labels: ClassVar[bool] = False

    learning_rate: float = 1e-3
    epochs: float = 30
    optimizer: Literal["sgd", "adamw"] = "adamw"
    schedule: Literal["constant", "cosine", "refit"] = "cosine"
    answers: Literal["probabilities", "labels"] = "probabilities"
    images: Any = None  # an `ImageDataset`
    queries: int | None = None
    views: int = 1
    student: Literal["same", "other"] = "same"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(self.answers in ("probabilities", "labels"), "answers", "choose 'probabilities' or 'labels'")
        self._check(isinstance(self.views, int) and self.views > 0, "views", "give a positive integer")
        enough = self.queries is None or (isinstance(self.queries, int) and self.queries >= self.views)
        self._check(enough, "queries", f"give a whole number of at least views={self.views}, or leave it out")
        self._check(self.student in ("same", "other"), "student", "choose 'same' or 'other'")
        usable = self.images is None or (hasattr(self.images, "__len__") and len(self.images) > 0)
        self._check(usable and not isinstance(self.images, str), "images", "give a data set with at least one image")

    def budget(self, data: Any = None) -> dict[str, int]:
        if data is None:
            return super().budget(data)
        images = len(self._rows(data))
        return self.training_budget(images) | {"queries": images * self.views}

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        bought = Answered(*self.buy(model.eval(), data))
        with torch.random.fork_rng(devices=[]):
            torch.random.default_generator.manual_seed(private_seed(f"{self.name}/student", self.seed))
            shape = tuple(bought[0]["pixel_values"].shape)
            student = fresh_copy(model) if self.student == "same" else other_architecture(model, shape)

        def loss(student: nn.Module, inputs: dict[str, Any]) -> tuple[torch.Tensor, Any]:
            outputs = student(pixel_values=inputs["pixel_values"])
            wanted = bought.answers[inputs["labels"].cpu()].to(outputs.logits.device)
            return F.cross_entropy(outputs.logits.float(), wanted), outputs

        return self.train(student, bought, loss=loss)

    def buy(self, model: nn.Module, data: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Images (N, C, H, W) and what the thief makes of the answers about them: probabilities (N, classes)."""
        source = self.images if self.images is not None else data
        rows = self._rows(data)
        generator = torch.Generator().manual_seed(private_seed(f"{self.name}/views", self.seed))
        images, answers = [], []
        for start in range(0, len(rows), self.batch_size):
            batch = torch.stack(
                [torch.as_tensor(source[row]["pixel_values"]) for row in rows[start : start + self.batch_size]]
            )
            images.append(batch)
            views = [batch, *(shifted(batch, generator) for _ in range(self.views - 1))]
            answers.append(torch.stack([self._ask(model, view) for view in views]).mean(dim=0))
        return torch.cat(images), torch.cat(answers)

    @torch.no_grad()
    def _ask(self, model: Any, images: torch.Tensor) -> torch.Tensor:
        logits = model(pixel_values=images.to(model.device, model.dtype)).logits.float().cpu()
        if self.answers == "probabilities":
            return logits.softmax(dim=1)
        return F.one_hot(logits.argmax(dim=1), logits.shape[1]).float()

    def _rows(self, data: Any) -> list[int]:
        count = len(self.images if self.images is not None else data)
        generator = torch.Generator().manual_seed(private_seed(f"{self.name}/images", self.seed))
        most = count if self.queries is None else min(count, self.queries // self.views)
        return torch.randperm(count, generator=generator)[:most].tolist()


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images (B, C, H, W) moved by up to an eighth of their side, all alike, with their border repeated."""
    _, _, height, width = images.shape
    frame_y, frame_x = max(1, height // 8), max(1, width // 8)
    top = int(torch.randint(2 * frame_y + 1, (), generator=generator))
    left = int(torch.randint(2 * frame_x + 1, (), generator=generator))
    framed = F.pad(images, [frame_x, frame_x, frame_y, frame_y], mode="replicate")
    return framed[:, :, top : top + height, left : left + width]


class Answered(Dataset):
    """Images with the number of their answer in place of a label."""

    def __init__(self, images: torch.Tensor, answers: torch.Tensor) -> None:
        self.images, self.answers = images, answers

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": self.images[index], "labels": index}


@dataclass
class DataFreeExtract(TrainingAttack):
    """
    Extract the model without any image: a generator makes images on which student and model disagree, the student learns the
    model's answers to them (DFME, Truong et al., https://huggingface.co/papers/2011.14779). Data serve for the shape of an
    image and the range of pixel values only. The gradient of the model's answers is estimated from differences along random
    directions, as an endpoint's must be, or taken from the weights, as a thief of the weights can. The generator's and the
    student's alternating steps do not fit `Trainer`; every process does the same work.

    Args:
        queries (`int`, *optional*, defaults to 200000):
            Most answers to buy. The paper takes 20 million for CIFAR-10.
        gradients (`str`, *optional*, defaults to `"estimated"`):
            `"estimated"` from answers, or `"exact"` from weights.
        directions (`int`, *optional*, defaults to 1):
            Differences per image for an estimated gradient; each costs a query.
        student_steps (`int`, *optional*, defaults to 5):
            Steps of the student per step of the generator.
        generator_rate (`float`, *optional*, defaults to 1e-3):
            Rate of the generator (Adam); `learning_rate` is the student's (AdamW or SGD).
        batch_size (`int`, *optional*, defaults to 128):
            Images per step.

    `epochs` and `schedule` of [`TrainingAttack`] have no meaning here: the run ends with the queries, under a cosine schedule.
    """

    name: ClassVar[str] = "data_free_extract"
    reads_labels: ClassVar[bool] = False

    learning_rate: float = 1e-3
    optimizer: Literal["sgd", "adamw"] = "adamw"
    queries: int = 200_000
    gradients: Literal["estimated", "exact"] = "estimated"
    directions: int = 1
    student_steps: int = 5
    generator_rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(self.gradients in ("estimated", "exact"), "gradients", "choose 'estimated' or 'exact'")
        self._check(0 < self.generator_rate < float("inf"), "generator_rate", "give a positive number")
        for field in ("directions", "student_steps"):
            count = vars(self)[field]
            self._check(isinstance(count, int) and count > 0, field, "give a positive integer")
        enough = isinstance(self.queries, int) and self.queries >= self.round_queries
        self._check(enough, "queries", f"one round of this batch_size takes {self.round_queries}; give at least that")

    @property
    def round_queries(self) -> int:
        """Answers bought per round: one step of the generator and `student_steps` of the student."""
        own = 1 + self.directions if self.gradients == "estimated" else 1
        return self.batch_size * (own + self.student_steps)

    @property
    def rounds(self) -> int:
        return self.queries // self.round_queries

    def budget(self, data: Any = None) -> dict[str, int]:
        if data is None:
            return super().budget(data)
        steps = self.rounds * (1 + self.student_steps)
        return spent(0, steps, steps * self.batch_size, self.rounds * self.round_queries)

    def apply(self, model: PreTrainedModel, data: Any) -> PreTrainedModel:
        return extract(self, model, data)
