"""Tiny nets with a marked LoRA adapter, in every form in which one is handed over."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tiny import patterned_images, tiny_resnet, training_arguments
from transformers import PreTrainedModel, ViTConfig, ViTForImageClassification

from hf_watermark import AutoTrainer, Owner, WatermarkKey
from hf_watermark.training.trainer import WatermarkTrainer


GREEDY: dict[str, Any] = {"method": "greedy_residuals", "bits": 160, "subkeys": 2, "group_size": 8}
LAYERS = {
    "vit": ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"],
    "resnet": ["convolution"],
}


def bare(net: str) -> PreTrainedModel:
    if net == "resnet":
        return tiny_resnet()
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return ViTForImageClassification(ViTConfig(**sizes, intermediate_size=64, num_channels=1, num_labels=10)).eval()


def with_adapter(net: str, **changes: Any) -> PeftModel:
    kept = ["classifier"] if net == "vit" else ["normalization", "classifier"]
    fields = {"r": 4, "lora_alpha": 8, "target_modules": LAYERS[net], "modules_to_save": kept}
    torch.manual_seed(1)
    return get_peft_model(bare(net), LoraConfig(**fields | changes))


def trainer_of(
    model: Any, folder: Path, watermark: Any = GREEDY, steps: int = 60, variety: float = 0.0, **given: Any
) -> WatermarkTrainer:
    methods = [item["method"] for item in (watermark if isinstance(watermark, list) else [watermark])]
    [method] = methods
    settings = {name: given.pop(name) for name in [*given] if name not in ("key", "owner")}
    arguments = training_arguments(folder, max_steps=steps, learning_rate=1e-2, **settings)
    given = given or {"owner": Owner.create()}
    data = patterned_images(variety=variety)
    return AutoTrainer.for_method(method)(
        model=model, args=arguments, train_dataset=data, watermark=watermark, **given
    )


@dataclass(frozen=True)
class Adapted:
    """
    Args:
        model: The live model with its adapter.
        adapter, base, merged: Folders.
    """

    key: WatermarkKey
    trainer: WatermarkTrainer
    model: PeftModel
    adapter: Path
    base: Path
    merged: Path

    def merged_model(self) -> Any:
        return PeftModel.from_pretrained(self.fresh_base(), self.adapter).merge_and_unload()

    def fresh_base(self) -> PreTrainedModel:
        return type(self.model.get_base_model()).from_pretrained(self.base)


def marked_adapter(
    net: str, folder: Path, watermark: Any = GREEDY, variety: float = 0.0, steps: int = 60, **changes: Any
) -> Adapted:
    trainer = trainer_of(with_adapter(net, **changes), folder / "run", watermark, steps, variety)
    trainer.train()
    trainer.save_model(str(folder / "adapter"))
    bare(net).save_pretrained(folder / "base")
    model: Any = trainer.model
    made = Adapted(trainer.key, trainer, model.eval(), folder / "adapter", folder / "base", folder / "merged")
    made.merged_model().save_pretrained(made.merged)
    return made
