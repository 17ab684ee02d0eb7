"""The detector paired with a model marked by `usp`: for the owner's own monitoring. It is no evidence, since its owner made it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from ...serialization import InvalidInput
from .code import HeldTemplate, Template, centred_others
from .readout import contrasts


class USPDetectorConfig(PreTrainedConfig):
    """
    Config of [`USPDetector`].

    Args:
        classes (`int`, *optional*, defaults to 10):
            Number of classes of the model that it watches for.
        features (`int`, *optional*, defaults to 42):
            Image features of the key's template; 42 are those of a default key for coloured images.
        hidden (`int`, *optional*, defaults to 64):
            Width of its two hidden layers.
    """

    model_type = "hf_watermark_usp_detector"

    def __init__(self, classes: int = 10, features: int = 42, hidden: int = 64, **kwargs: Any):
        self.classes, self.features, self.hidden = classes, features, hidden
        super().__init__(**kwargs)


class USPDetector(PreTrainedModel):
    """
    Says for single answers `[n, classes]` to images whether they come from a marked model or a student of one. It sees the top class and
    how the other probabilities compare to what the key's template adds to this image, never how sure the answer is. Save it beside the
    key (`detector.save_pretrained("keys/my-model/detector")`): it holds the signs, and would tell a thief when the mark is gone.

    Make one with [`train_detector`].
    """

    config_class = USPDetectorConfig
    main_input_name = "probabilities"

    def __init__(self, config: USPDetectorConfig):
        super().__init__(config)
        self.template = HeldTemplate(config.features, config.classes)
        self.layers = nn.Sequential(
            nn.Linear(2 * config.classes, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, 1),
        )
        self.post_init()

    def forward(self, probabilities: torch.Tensor, images: torch.Tensor, **kwargs: Any) -> ImageClassifierOutput:
        """`logits` `[n]`: positive where an answer looks marked. NaN answers give 0 contrasts."""
        if probabilities.shape[1] != self.config.classes:
            raise InvalidInput(
                f"the answers have {probabilities.shape[1]} classes, the detector knows {self.config.classes}"
            )
        values, top = read_answers(probabilities)
        return ImageClassifierOutput(logits=self.score(values, self.template(images), top))

    def score(self, values: torch.Tensor, shift: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
        """
        `[n]` of contrasts, the template's shifts (both `[n, classes]`) and top classes `[n]`. It sees the products of contrasts and shifts
        alone: given the contrasts themselves, it would learn that soft labels were trained, under whichever key.
        """
        wanted = centred_others(shift, top)
        wanted = wanted / wanted.abs().mean(dim=1, keepdim=True).clamp_min(1e-6)
        own = functional.one_hot(top, self.config.classes).to(wanted.dtype)
        inputs = torch.cat([values.to(wanted.dtype) * wanted, own], dim=1)
        return self.layers(inputs.to(self.dtype))[:, 0]

    def detects(self, probabilities: torch.Tensor, images: torch.Tensor, together: int = 1) -> torch.Tensor:
        """
        Whether answers `[n, classes]` to `images` look marked: `[n]` (bool), or `[n // together]` where so many consecutive answers are
        judged as one.
        """
        with torch.no_grad():
            logits = self(probabilities, images).logits
        groups = len(logits) // together
        return logits[: groups * together].reshape(groups, together).mean(dim=1) > 0


def read_answers(probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Contrasts of the classes other than the top one (float), and the top class."""
    top = probabilities.nan_to_num(0.0).argmax(dim=1)
    return contrasts(probabilities, top).float(), top


def train_detector(
    template: Template,
    images: torch.Tensor,
    marked: Sequence[torch.Tensor],
    clean: Sequence[torch.Tensor] = (),
    steps: int = 2000,
    batch: int = 256,
    seed: int = 0,
) -> USPDetector:
    """
    Trains a detector for one key.

    Half of each batch are marked answers under the key's template. The other half are answers of clean models under it, if there are any,
    and marked answers under random other templates, drawn anew for every batch; so it learns this key's template, not that soft labels
    were trained at all.

    Args:
        template ([`~code.Template`]):
            `USPVerifier(claim).template()`.
        images (`torch.Tensor`):
            `[n, channels, height, width]`: what all models were asked.
        marked (`Sequence[torch.Tensor]`):
            Probabilities `[n, classes]` of the marked model, and of students distilled from it if there are any.
        clean (`Sequence[torch.Tensor]`, *optional*):
            The same of unmarked models: other seeds, label smoothing, distilled ones.
        steps, batch, seed (`int`, *optional*):
            Length of the training, answers per step, and seed.

    Example:

    ```python
    >>> detector = train_detector(USPVerifier(claim).template(), images, [answers], clean=[answers_of_another_model])
    >>> detector.detects(suspect_answers, images).float().mean()
    ```
    """
    if not marked or any(len(answers) != len(images) or not len(answers) for answers in [*marked, *clean]):
        raise ValueError(
            "`marked` or an entry of `clean` is empty or not as long as `images`: give the probabilities of at least one marked model, a "
            "row for each image"
        )
    generator = torch.Generator().manual_seed(seed)
    features, (count, classes) = template.features(images), template.signs.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = USPDetector(USPDetectorConfig(classes=classes, features=count))
    detector.template.hold(template)
    real, false = _stacked(marked), _stacked(clean) if clean else None
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    detector.train()
    for _ in range(steps):
        decoy = torch.randint(0, 2, template.signs.shape, generator=generator) * 2.0 - 1
        rows = [(real, batch // 2, template.signs), (real, batch // 4 if false else batch // 2, decoy)]
        if false:
            rows.append((false, batch // 4, template.signs))
        drawn = [_draw(answered, features, signs, number, generator) for answered, number, signs in rows]
        values, shift, top = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        wanted = (torch.arange(len(top)) < batch // 2).float()
        scores = detector.score(_weakened(values, generator), shift, top)
        loss = functional.binary_cross_entropy_with_logits(scores, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return detector.eval()


def _stacked(answered: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Contrasts `[models, n, classes]` and top classes `[models, n]`."""
    values, tops = zip(*(read_answers(answers) for answers in answered), strict=True)
    return torch.stack(values), torch.stack(tops)


def _draw(
    answered: tuple[torch.Tensor, torch.Tensor],
    features: torch.Tensor,
    signs: torch.Tensor,
    count: int,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Contrasts, shifts under `signs` and top classes of `count` random answers."""
    values, tops = answered
    model, row = (torch.randint(size, (count,), generator=generator) for size in tops.shape)
    return values[model, row], features[row] @ signs, tops[model, row]


def _weakened(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Noise of random size on the contrasts, marked and clean alike: what rounding and students do to them."""
    size = 0.4 * torch.rand(len(values), 1, generator=generator)
    return values + size * torch.randn(values.shape, generator=generator) * (values != 0)
