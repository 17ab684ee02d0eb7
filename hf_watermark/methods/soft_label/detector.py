"""The detector paired with a model marked by `usp`: the owner's radar. It is no evidence, since its owner made it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from ...serialization import InvalidInput
from .readout import contrasts


class USPDetectorConfig(PreTrainedConfig):
    """
    Config of [`USPDetector`].

    Args:
        classes (`int`, *optional*, defaults to 10):
            Number of classes of the model that it watches for.
        hidden (`int`, *optional*, defaults to 64):
            Width of its two hidden layers.
    """

    model_type = "hf_watermark_usp_detector"

    def __init__(self, classes: int = 10, hidden: int = 64, **kwargs: Any):
        self.classes, self.hidden = classes, hidden
        super().__init__(**kwargs)


class USPDetector(PreTrainedModel):
    """
    Says for single answers `[n, classes]` whether they come from a marked model or a student of one. It sees the top class and how the
    other probabilities compare, never how sure the answer is. Save it beside the key (`detector.save_pretrained("keys/my-model/detector")`):
    published, it would tell a thief when the mark is gone.

    Make one with [`train_detector`].
    """

    config_class = USPDetectorConfig
    main_input_name = "probabilities"

    def __init__(self, config: USPDetectorConfig):
        super().__init__(config)
        self.layers = nn.Sequential(
            nn.Linear(2 * config.classes, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, 1),
        )
        self.post_init()

    def forward(self, probabilities: torch.Tensor, **kwargs: Any) -> ImageClassifierOutput:
        """`logits` `[n]`: positive where an answer looks marked. NaN answers give 0 contrasts."""
        if probabilities.shape[1] != self.config.classes:
            raise InvalidInput(
                f"the answers have {probabilities.shape[1]} classes, the detector knows {self.config.classes}"
            )
        return ImageClassifierOutput(logits=self.score(*features(probabilities)))

    def score(self, values: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
        inputs = torch.cat([values.float(), functional.one_hot(top, self.config.classes).float()], dim=1)
        return self.layers(inputs.to(self.dtype))[:, 0]

    def detects(self, probabilities: torch.Tensor) -> torch.Tensor:
        """Whether each answer looks marked, `[n]` (bool)."""
        with torch.no_grad():
            return self(probabilities).logits > 0


def features(probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Contrasts of the classes other than the top one, and the top class."""
    top = probabilities.nan_to_num(0.0).argmax(dim=1)
    return contrasts(probabilities, top), top


def train_detector(
    marked: Sequence[torch.Tensor],
    clean: Sequence[torch.Tensor] = (),
    steps: int = 2000,
    batch: int = 256,
    seed: int = 0,
) -> USPDetector:
    """
    Trains a detector for one key.

    Half of each batch are marked answers. The other half are answers of clean models, if there are any, and decoys: marked answers whose
    contrasts got the signs of a random other template, drawn anew for every batch, or were shuffled among the classes; so it
    learns this key's template, not that soft labels were trained at all.

    Args:
        marked (`Sequence[torch.Tensor]`):
            Probabilities `[n, classes]` of the marked model, and of students distilled from it if there are any.
        clean (`Sequence[torch.Tensor]`, *optional*):
            The same of unmarked models: other seeds, label smoothing, distilled ones.
        steps, batch, seed (`int`, *optional*):
            Length of the training, answers per step, and seed.

    Example:

    ```python
    >>> detector = train_detector([answers_of_marked_model], clean=[answers_of_another_model])
    >>> detector.detects(suspect_answers).float().mean()
    ```
    """
    if not marked or not all(len(answers) for answers in [*marked, *clean]):
        raise ValueError(
            "`marked` or an entry of `clean` is empty: give the probabilities of at least one marked model"
        )
    generator = torch.Generator().manual_seed(seed)
    classes = marked[0].shape[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = USPDetector(USPDetectorConfig(classes=classes))
    real_answers, clean_answers = _Answers(marked), _Answers(clean) if clean else None
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    detector.train()
    for _ in range(steps):
        real = real_answers.draw(batch // 2, generator)
        false = real_answers.draw(batch // 4 if clean_answers else batch // 2, generator)
        rows = [real, _decoys(*false, generator)]
        if clean_answers:
            rows.append(clean_answers.draw(batch // 4, generator))
        values, top = (torch.cat(parts) for parts in zip(*rows, strict=True))
        wanted = (torch.arange(len(top)) < len(real[1])).float()
        loss = functional.binary_cross_entropy_with_logits(detector.score(_weakened(values, generator), top), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return detector.eval()


class _Answers:
    """Answers of several models, drawn from every model about as often."""

    def __init__(self, groups: Sequence[torch.Tensor]):
        values, tops = zip(*(features(answers) for answers in groups), strict=True)
        self.values, self.top = torch.cat(values).float(), torch.cat(tops)
        self.sizes = torch.tensor([len(top) for top in tops])
        self.starts = self.sizes.cumsum(dim=0) - self.sizes

    def draw(self, count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        model = torch.randint(len(self.sizes), (count,), generator=generator)
        place = (torch.rand(count, generator=generator) * self.sizes[model]).long()
        rows = self.starts[model] + place.clamp_max(self.sizes[model] - 1)
        return self.values[rows], self.top[rows]


def _decoys(values: torch.Tensor, top: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """The same sizes under another template: half with random signs for each pair of classes, half shuffled."""
    classes, half = values.shape[1], len(values) // 2
    template = torch.randint(0, 2, (classes, classes), generator=generator) * 2 - 1
    signed = values[:half].abs() * template[top[:half]]
    order = torch.rand(len(values) - half, classes, generator=generator).argsort(dim=1)
    shuffled = values[half:].gather(1, order)
    mixed = torch.cat([signed, shuffled])
    return mixed.masked_fill(functional.one_hot(top, classes).bool(), 0.0), top


def _weakened(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Noise of random size on the contrasts, marked and clean alike: what rounding and students do to them."""
    size = 0.4 * torch.rand(len(values), 1, generator=generator)
    return values + size * torch.randn(values.shape, generator=generator) * (values != 0)
