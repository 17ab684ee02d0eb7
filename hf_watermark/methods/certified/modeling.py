"""`SmoothedModelForImageClassification`: a classifier averaged over parameter noise, as an ordinary transformers model."""

from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ...backbones import FoldedNet, images_taken
from ...backbones.wrapping import WrapperModel
from .noise import add_noise, noise_scales


# Every answer takes so many passes of the backbone.
MOST_DRAWS = 10_000


class SmoothedConfig(PreTrainedConfig):
    """
    Config of [`SmoothedModelForImageClassification`].

    Args:
        backbone (`dict`, *optional*):
            Config of the averaged model.
        sigma (`float`, *optional*, defaults to 0.3):
            Noise level in units of each tensor's scale.
        scales (`dict[str, float]`, *optional*):
            Scale per folded tensor.
        moves (`str`, *optional*, defaults to `"all"`):
            `"all"` or `"parameters"`, as in [`CertifiedConfig`].
        draws (`int`, *optional*, defaults to 32):
            Noise draws that are averaged.
        noise_seed (`int`, *optional*, defaults to 0):
            Public seed of the draws: the same model gives the same answers on the same hardware.
    """

    model_type = "hf_watermark_smoothed"

    def __init__(
        self,
        backbone: dict[str, Any] | None = None,
        sigma: float = 0.3,
        scales: dict[str, float] | None = None,
        moves: str = "all",
        draws: int = 32,
        noise_seed: int = 0,
        **kwargs: Any,
    ):
        if not sigma > 0:
            raise ValueError(f"`sigma` is {sigma}: choose a positive number; 0.3 is the default")
        if type(draws) is not int or not 1 <= draws <= MOST_DRAWS:
            raise ValueError(f"`draws` is {draws!r}: choose 1 to {MOST_DRAWS}; 32 is the default")
        if moves not in ("all", "parameters"):
            raise ValueError(f'`moves` is {moves!r}: choose "all" or "parameters"')
        if type(noise_seed) is not int:
            raise ValueError(f"`noise_seed` is {noise_seed!r}: choose a whole number")
        self.backbone, self.sigma, self.scales = backbone, sigma, scales
        self.moves, self.draws, self.noise_seed = moves, draws, noise_seed
        super().__init__(**kwargs)


class SmoothedModelForImageClassification(WrapperModel):
    """
    An image classifier whose answer is the mean of its answers under Gaussian parameter noise. It saves, loads and works in a
    `pipeline` like any transformers model; import this class first, which registers it with the Auto classes. The smoothing is that of
    [`CertifiedConfig`]; one answer costs `draws` passes.

    Args:
        config ([`~methods.certified.modeling.SmoothedConfig`]):
            Noise level, scales, number of draws and the averaged model's own config. [`SmoothedModelForImageClassification.smooth`] makes it.

    Raises:
        [`~serialization.InvalidInput`]: for a config without a backbone.

    Example:

    ```python
    >>> smoothed = SmoothedModelForImageClassification.smooth(model, sigma=0.1)
    >>> smoothed.save_pretrained("smoothed-model")
    ```
    """

    config_class = SmoothedConfig
    made_by = "SmoothedModelForImageClassification.smooth(model)"

    def __init__(self, config: SmoothedConfig):
        super().__init__(config)
        self._nets: list[FoldedNet] = []  # in a list: its template is no part of this model
        self.post_init()

    @classmethod
    def smooth(
        cls, model: PreTrainedModel, sigma: float = 0.3, noise: str = "relative", **fields: Any
    ) -> "SmoothedModelForImageClassification":
        """
        Wraps a model of one's own.

        Args:
            model ([`~transformers.PreTrainedModel`]):
                An image classifier; it becomes part of the wrapper.
            sigma (`float`, *optional*, defaults to 0.3):
                As in [`CertifiedConfig`].
            noise (`str`, *optional*, defaults to `"relative"`):
                `"relative"` or `"isotropic"`, as in [`CertifiedConfig`]; scales are those of the model as it is.
            fields (*optional*):
                More fields of [`SmoothedConfig`], `scales` among them.
        """
        scales = fields.pop("scales", None)
        if scales is None:
            net = FoldedNet(model, images_taken(model), fold=fields.get("moves", "all") == "all")
            scales = noise_scales(net.coordinates(model), noise)
        return cls.around(model, sigma=sigma, scales=scales, **fields).eval()

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """
        The mean answer of `draws` noisy nets; in training mode the answer of the plain one.

        Args:
            pixel_values (`torch.Tensor`):
                `[n, channels, height, width]`.
            labels (`torch.Tensor`, *optional*):
                `[n]`; adds the cross-entropy as `loss`.

        Returns:
            [`~transformers.modeling_outputs.ImageClassifierOutput`]: `logits` `[n, classes]` are logarithms of mean probabilities.
        """
        if self.training:
            return self.backbone(pixel_values, labels=labels)
        if not self._nets:
            self._nets.append(FoldedNet(self.backbone, pixel_values[:1], fold=self.config.moves == "all"))
        net = self._nets[0]
        weights = net.coordinates(self.backbone)
        spread = {name: self.config.sigma * scale for name, scale in self.config.scales.items()}
        mean: Any = 0
        for draw in range(self.config.draws):
            logits = net(add_noise(weights, spread, self.config.noise_seed + draw), pixel_values)
            mean = mean + logits.float().softmax(dim=-1) / self.config.draws
        return self.answer(mean.clamp_min(torch.finfo(torch.float32).tiny).log(), labels)


SmoothedModelForImageClassification.register()

SmoothedModel = SmoothedModelForImageClassification
"""Short name; the long one is what `pipeline` and `config.json` ask for."""
