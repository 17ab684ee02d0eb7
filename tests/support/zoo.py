"""Tiny untrained backbones of every family, by library."""

from collections.abc import Callable
from typing import Any

import timm
import torch
from timm.layers import ClassifierHead
from timm.models.vgg import VGG, ConvMlp
from torch import nn
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    MobileNetV2ForSemanticSegmentation,
    MobileViTConfig,
    MobileViTForSemanticSegmentation,
    ResNetConfig,
    ResNetForImageClassification,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from hf_watermark import wrap_timm


LABELS = 4
VIT = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 64}
SWIN = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 2}
TIMM_SWIN = {"img_size": 16, "patch_size": 2, "embed_dim": 8, "depths": (1, 2), "num_heads": (2, 2), "window_size": 2}
VGG_PLAN = [8, "M", 16, "M", 16, 16]
VGG_HEAD = 256


def lively(model: nn.Module) -> nn.Module:
    """Random weights, BatchNorm statistics and scales, as training would leave them; some BatchNorm weights are negative."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d) and layer.track_running_stats and layer.affine:
            layer.running_mean.normal_(std=0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
            layer.weight.data.uniform_(0.5, 1.5, generator=generator)
            layer.weight.data[::3] *= -1
            layer.bias.data.normal_(generator=generator)
        elif isinstance(layer, nn.LayerNorm) and layer.elementwise_affine:
            layer.weight.data.uniform_(0.5, 1.5, generator=generator)
            if layer.bias is not None:
                layer.bias.data.normal_(std=0.3, generator=generator)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            layer.weight.data.normal_(std=layer.weight[0].numel() ** -0.5, generator=generator)
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "layer_scale_parameter", "position_embeddings", "pos_embed", "cls_token")):
            parameter.data.normal_(std=0.5, generator=generator)
    return model.eval()


def wrapped(architecture: str, **arguments: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        module = timm.create_model(architecture, num_classes=LABELS, **arguments)
        return wrap_timm(module, architecture, LABELS, **arguments)

    return build


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "transformers resnet": lambda: ResNetForImageClassification(
        ResNetConfig(
            embedding_size=64, hidden_sizes=[8, 8, 16, 16], depths=[2] * 4, layer_type="basic", num_labels=LABELS
        )
    ),
    "transformers resnet bottleneck": lambda: ResNetForImageClassification(
        ResNetConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[2, 1], num_labels=LABELS)
    ),
    "transformers vit": lambda: ViTForImageClassification(
        ViTConfig(**VIT, num_hidden_layers=2, layer_norm_eps=1e-6, num_labels=LABELS)
    ),
    "transformers swin": lambda: SwinForImageClassification(SwinConfig(**SWIN, num_labels=LABELS)),
    "transformers convnext": lambda: ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 2], num_stages=2, num_labels=LABELS)
    ),
    "transformers mobilenet_v2": lambda: MobileNetV2ForImageClassification(
        MobileNetV2Config(depth_multiplier=0.25, image_size=32, num_labels=LABELS)
    ),
    "deeplab mobilenet_v2": lambda: MobileNetV2ForSemanticSegmentation(
        MobileNetV2Config(depth_multiplier=0.25, image_size=32, num_labels=LABELS)
    ),
    "deeplab mobilevit": lambda: MobileViTForSemanticSegmentation(
        MobileViTConfig(
            hidden_sizes=[16, 16, 24],
            neck_hidden_sizes=[8, 8, 8, 16, 16, 24, 32],
            aspp_out_channels=8,
            image_size=64,
            num_labels=LABELS,
        )
    ),
    "segformer": lambda: SegformerForSemanticSegmentation(
        SegformerConfig(
            hidden_sizes=[8, 8, 16, 16],
            depths=[1, 2, 1, 1],
            num_attention_heads=[1, 1, 2, 2],
            decoder_hidden_size=16,
            num_labels=LABELS,
        )
    ),
    "timm resnet18": wrapped("resnet18", channels=[8, 8, 16, 16]),
    "timm mobilenetv3": wrapped("mobilenetv3_small_050"),
    "timm mobilenetv2": wrapped("mobilenetv2_035"),
    "timm swin": wrapped("swin_tiny_patch4_window7_224", **TIMM_SWIN),
    "timm convnext": wrapped("convnext_atto", dims=[8, 16, 16, 16], depths=[1, 1, 1, 1]),
    "timm vit": wrapped("vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2),
    "plain timm vit": lambda: timm.create_model(
        "vit_tiny_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=LABELS
    ),
    "plain timm resnet10t": lambda: timm.create_model(
        "resnet10t", channels=(8, 8, 8, 8), stem_width=4, num_classes=LABELS
    ),
    "plain timm vgg": lambda: narrow_vgg(),
    "plain timm vgg_bn": lambda: narrow_vgg(norm_layer=nn.BatchNorm2d),
}
SAVEABLE = [name for name in BUILDERS if not name.startswith("plain")]
SIDES = {
    "transformers resnet": 32,
    "transformers resnet bottleneck": 32,
    "plain timm vgg": 32,
    "plain timm vgg_bn": 32,
}
SIDES |= {"transformers convnext": 32, "timm resnet18": 32, "timm convnext": 32, "plain timm resnet10t": 32}
SIDES |= {"deeplab mobilenet_v2": 64, "deeplab mobilevit": 64, "segformer": 64}
SIDES |= {"transformers mobilenet_v2": 64, "timm mobilenetv2": 64, "timm mobilenetv3": 64}


def narrow_vgg(**options: Any) -> nn.Module:
    """timm's, whose head of 4,096 units is none that can be chosen."""
    model = VGG(VGG_PLAN, num_classes=LABELS, mlp_ratio=0.01, **options)
    model.pre_logits, model.head = ConvMlp(VGG_PLAN[-1], VGG_HEAD, 7, mlp_ratio=0.25), ClassifierHead(VGG_HEAD, LABELS)
    model.head_hidden_size = VGG_HEAD
    model._initialize_weights()
    return model


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    return lively(BUILDERS[name]())


def images_for(name: str, count: int = 2) -> torch.Tensor:
    side = SIDES.get(name, 16)
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def logits(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        output = model(images)
    return output if isinstance(output, torch.Tensor) else output.logits
