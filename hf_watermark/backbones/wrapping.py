"""What the model wrappers of methods and attacks have in common: an image classifier around another one."""

from typing import Any, ClassVar, Self

import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForImageClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ImageClassifierOutput

from .loading import backbone_config, backbone_record


class WrapperModel(PreTrainedModel):
    """An image classifier around another one, whose config stands in its own as `backbone`. A subclass calls `post_init` itself."""

    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    # What makes one of a model at hand, for the message when the config holds no inner model.
    made_by: ClassVar[str]

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.backbone: Any = AutoModelForImageClassification.from_config(
            backbone_config(config.backbone, f"use {self.made_by}")
        )

    @classmethod
    def around(cls, model: PreTrainedModel, **fields: Any) -> Self:
        """A wrapper of a model at hand, which becomes part of it; `fields` are those of its config. Its own buffers hold nothing yet."""
        labels: dict[str, Any] = {"id2label": model.config.id2label, "label2id": model.config.label2id}
        config: Any = cls.config_class
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            wrapped = cls(config(backbone=backbone_record(model), **labels, **fields))
        wrapped.backbone = model
        return wrapped

    @staticmethod
    def answer(logits: torch.Tensor, labels: torch.Tensor | None) -> ImageClassifierOutput:
        """With the cross-entropy where there are labels."""
        loss = None if labels is None else functional.cross_entropy(logits.float(), labels)
        return ImageClassifierOutput(loss=loss, logits=logits)

    @classmethod
    def register(cls) -> None:
        """Makes the Auto classes know it."""
        config: Any = cls.config_class
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForImageClassification.register(config, cls, exist_ok=True)
