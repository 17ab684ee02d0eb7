"""`PerturbedOutputModelForImageClassification`: marks the answers of a trained model at inference time, as an ordinary transformers model."""

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ...backbones.wrapping import WrapperModel
from ...keys import Claim
from .code import HeldTemplate, without_class
from .verifier import CSPVerifier


MOST_FEATURES = 10_000


class PerturbedOutputConfig(PreTrainedConfig):
    """
    Config of [`PerturbedOutputModelForImageClassification`].

    Args:
        backbone (`dict`, *optional*):
            Config of the model whose answers are marked.
        mass (`float`, *optional*, defaults to 0.1):
            Least probability of the classes other than the top one; a surer answer is lowered to `1 - mass`.
        amplitude (`float`, *optional*, defaults to 1.0):
            Size of the perturbation of the other classes' log-probabilities, in nats.
        features (`int`, *optional*, defaults to 42):
            Image features that carry signs; 42 are those of a default key for coloured images.
    """

    model_type = "hf_watermark_perturbed_output"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        mass: float = 0.1,
        amplitude: float = 1.0,
        features: int = 42,
        **kwargs: Any,
    ):
        if not 0 <= mass < 0.5:
            raise ValueError(f"`mass` is {mass}: choose a share in [0, 0.5); 0.1 is the default")
        if not amplitude > 0:
            raise ValueError(f"`amplitude` is {amplitude}: choose a positive number; 1.0 is the default")
        if type(features) is not int or not 1 <= features <= MOST_FEATURES:
            raise ValueError(f"`features` is {features!r}: choose 1 to {MOST_FEATURES}; 42 is the default")
        self.backbone, self.mass, self.amplitude, self.features = backbone, mass, amplitude, features
        super().__init__(**kwargs)


class PerturbedOutputModelForImageClassification(WrapperModel):
    """
    An image classifier whose small probabilities carry a key's signs, without any training. The top class never changes. It saves,
    loads and works in a `pipeline` like any transformers model; import this class first, which registers it with the Auto classes.

    > [!WARNING]
    > The folder holds the signs, which are the mark itself, but no seed: nobody can derive the key or another copy's signs from them.
    > Whoever has the folder can take the wrapper off, so keep it on your own server. What carries the mark away are its answers, and
    > the students trained on them.

    Example:

    ```python
    >>> model = PerturbedOutputModelForImageClassification.perturb(classifier, key.claims()[0])
    >>> model.save_pretrained("served-model")
    ```
    """

    config_class = PerturbedOutputConfig
    made_by = "PerturbedOutputModelForImageClassification.perturb(model, claim)"

    def __init__(self, config: PerturbedOutputConfig):
        super().__init__(config)
        self.template = HeldTemplate(config.features, int(self.backbone.config.num_labels))
        self.post_init()

    @classmethod
    def perturb(
        cls, model: PreTrainedModel, claim: Claim, mass: float | None = None
    ) -> "PerturbedOutputModelForImageClassification":
        """
        Wraps a trained model of one's own.

        Args:
            model ([`~transformers.PreTrainedModel`]):
                An image classifier; it becomes part of the wrapper and is not changed.
            claim ([`~keys.Claim`]):
                `key.claims()[0]` of a key of method `csp`; see [`issue_copies`].
            mass (`float`, *optional*):
                Instead of the key's own `mass`. With 0 confidences stay exactly as they are, and the mark of very sure answers is lost to
                rounding.
        """
        verifier = CSPVerifier(claim)
        if model.config.num_labels != verifier.classes:
            raise ValueError(
                f"the key was made for {verifier.classes} classes, this model has {model.config.num_labels}; make a fresh key"
            )
        perturbed = cls.around(
            model,
            mass=verifier.config.mass if mass is None else mass,
            amplitude=verifier.config.amplitude,
            features=len(verifier.features.mean),
        )
        perturbed.template.hold(verifier.template(), model.device)
        return perturbed.eval()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """
        Args:
            pixel_values (`torch.Tensor`):
                `[n, channels, height, width]`.
            labels (`torch.Tensor`, *optional*):
                `[n]`; adds the cross-entropy as `loss`.

        Returns:
            [`~transformers.modeling_outputs.ImageClassifierOutput`]: `logits` `[n, classes]` are log-probabilities with the mark.
        """
        if self.training:
            return self.backbone(pixel_values, labels=labels, **kwargs)
        plain = self.backbone(pixel_values, **kwargs).logits.float()
        shift = self.config.amplitude * self.template(pixel_values)
        return self.answer(perturbed_log_probabilities(plain, plain.argmax(dim=1), shift, self.config.mass), labels)


def perturbed_log_probabilities(
    logits: torch.Tensor, top: torch.Tensor, shift: torch.Tensor, mass: float
) -> torch.Tensor:
    """
    Log-probabilities `[n, classes]` whose part other than the top class is multiplied by `exp(shift)`, keeps its sum, and has at least
    `mass`, filled up evenly before the shift. A row in which a runner-up would reach the top class stays as it was.

    Args:
        logits, shift (`torch.Tensor`):
            `[n, classes]`.
        top (`torch.Tensor`):
            `[n]`: the top class of each row.
    """
    log_p = logits.log_softmax(dim=1)
    others = logits.shape[1] - 1
    log_top = log_p.gather(1, top[:, None])
    log_rest = without_class(log_p, top).logsumexp(dim=1, keepdim=True)
    missing = (mass - log_rest.exp()).clamp_min(0.0) / others
    filled = torch.logaddexp(without_class(log_p, top), missing.clamp_min(1e-38).log())
    shifted = without_class(filled + shift, top).log_softmax(dim=1)
    marked = shifted + torch.maximum(log_rest, log_rest.new_tensor(max(mass, 1e-38)).log())
    lowered = torch.log1p(-torch.clamp(torch.maximum(log_rest.exp(), log_rest.new_tensor(mass)), max=1 - 1e-6))
    marked = marked.scatter(1, top[:, None], torch.where(missing > 0, lowered, log_top))
    runner_up = without_class(marked, top).amax(dim=1, keepdim=True)
    # Strictly below, by more than rounding: the answer's label must stay the backbone's.
    return torch.where(runner_up < marked.gather(1, top[:, None]) - 1e-4, marked, log_p)


PerturbedOutputModelForImageClassification.register()

PerturbedOutputModel = PerturbedOutputModelForImageClassification
"""Short name; the long one is what `pipeline` and `config.json` ask for."""
