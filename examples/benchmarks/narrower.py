"""Narrower configurations of timm's own classes, for files whose smallest listed model is too large to be aligned on a laptop's CPU."""

from collections.abc import Callable

import timm
from timm.layers import ClassifierHead
from timm.models.convmixer import ConvMixer
from timm.models.focalnet import FocalNet
from timm.models.gcvit import GlobalContextVit
from timm.models.metaformer import MetaFormer
from timm.models.mlp_mixer import MlpMixer
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.nest import Nest
from timm.models.rdnet import RDNet
from timm.models.vgg import VGG, ConvMlp
from timm.models.volo import VOLO
from torch import nn


CLASSES = 10
# What is given to `timm.create_model` besides a name.
SMALLER: dict[str, tuple[str, dict[str, object]]] = {
    "beit": ("beit_base_patch16_224", {"embed_dim": 192, "depth": 4, "num_heads": 3}),
    "cait": ("cait_xxs24_224", {"depth": 4}),
    "convit": ("convit_tiny", {"depth": 4, "local_up_to_layer": 2}),
    "davit": ("davit_tiny", {"embed_dims": (48, 64, 96, 128), "depths": (1, 1, 2, 1), "num_heads": (3, 4, 6, 8)}),
    "deepseek_vit": ("deepseek_vit_412m", {"embed_dim": 192, "depth": 4, "num_heads": 3}),
    "deit": ("deit_tiny_patch16_224", {"depth": 4}),
    "densenet": ("densenet121", {"block_config": (3, 4, 4, 3)}),
    "efficientformer": ("efficientformer_l1", {"depths": (1, 1, 2, 2), "embed_dims": (24, 48, 96, 192)}),
    "eva": ("vit_tiny_patch16_dinov3_qkvb", {"depth": 4}),
    "gemma4_vit": ("gemma4_vit_167m_enc", {"embed_dim": 192, "depth": 4, "num_heads": 3}),
    "hiera": ("hiera_tiny_224", {"embed_dim": 48, "stages": (1, 1, 2, 1)}),
    "hieradet_sam2": ("sam2_hiera_tiny", {"embed_dim": 48, "stages": (1, 1, 2, 1)}),
    "naflexvit": ("naflexvit_base_patch16_parfac_gap", {"embed_dim": 192, "depth": 4, "num_heads": 3}),
    "nasnet": ("nasnetalarge", {"stem_size": 32, "channel_multiplier": 2, "num_features": 960}),
    "qwen3_vit": ("qwen3_vit_88m", {"embed_dim": 192, "depth": 4, "num_heads": 3}),
    "res2net": ("res2next50", {"layers": (1, 1, 1, 1)}),
    "resnetv2": ("resnetv2_18", {"channels": (64, 96, 128, 192)}),
    "sequencer": (
        "sequencer2d_s",
        {"layers": (1, 1, 2, 1), "embed_dims": (48, 96, 96, 96), "hidden_sizes": (24, 48, 48, 48)},
    ),
    "sknet": ("skresnet18", {"layers": (1, 1, 1, 1)}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", {"embed_dim": 48, "depths": (2, 2, 2, 2)}),
    "swin_transformer_v2": ("swinv2_tiny_window16_256", {"embed_dim": 48, "depths": (2, 2, 2, 2)}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", {"embed_dim": 48, "depths": (2, 2, 2, 2)}),
    "tnt": ("tnt_s_legacy_patch16_224", {"embed_dim": 192, "depth": 4}),
    "tresnet": ("tresnet_m", {"width_factor": 0.5, "layers": [1, 1, 2, 1]}),
    "twins": (
        "twins_svt_small",
        {"embed_dims": (32, 64, 96, 128), "depths": (1, 1, 2, 1), "num_heads": (1, 2, 3, 4)},
    ),
    "visformer": ("visformer_tiny", {"embed_dim": 96, "init_channels": 16, "depth": (2, 2, 2)}),
    "vision_transformer_sam": ("samvit_base_patch16_224", {"embed_dim": 192, "depth": 4, "num_heads": 3}),
    "vitamin": ("vitamin_small_224", {"depth": 4}),
}
# Where the functions that timm lists leave no choice.
BUILT: dict[str, Callable[[], nn.Module]] = {
    "convmixer": lambda: ConvMixer(192, 6, kernel_size=7, patch_size=7, num_classes=CLASSES),
    "focalnet": lambda: FocalNet(embed_dim=48, depths=(1, 1, 2, 1), num_classes=CLASSES),
    "gcvit": lambda: GlobalContextVit(embed_dim=32, depths=(1, 1, 2, 1), num_classes=CLASSES),
    "metaformer": lambda: MetaFormer(depths=(1, 1, 2, 1), dims=(32, 64, 96, 128), num_classes=CLASSES),
    "mlp_mixer": lambda: MlpMixer(num_blocks=4, embed_dim=192, num_classes=CLASSES),
    "mvitv2": lambda: MultiScaleVit(
        MultiScaleVitCfg(depths=(1, 2, 2, 1), embed_dim=(48, 96, 192, 384)), num_classes=CLASSES
    ),
    "nest": lambda: Nest(embed_dims=(48, 96, 192), num_heads=(3, 6, 12), depths=(1, 1, 2), num_classes=CLASSES),
    "rdnet": lambda: RDNet(
        num_init_features=32, growth_rates=(16, 32, 32, 32, 48, 48, 64), num_blocks_list=(2,) * 7, num_classes=CLASSES
    ),
    "vgg": lambda: narrow_vgg(),
    "volo": lambda: VOLO([1, 1, 2, 1], embed_dims=[96, 192, 192, 192], num_heads=[3, 6, 6, 6], num_classes=CLASSES),
}


def narrow_vgg() -> nn.Module:
    """timm's, whose head of 4,096 units is none that can be chosen."""
    model = VGG([32, "M", 64, "M", 96, 96, "M", 128, 128, "M", 128, 128, "M"], num_classes=CLASSES, mlp_ratio=0.02)
    model.pre_logits, model.head = ConvMlp(128, 512, 7, mlp_ratio=0.5), ClassifierHead(512, CLASSES)
    model.head_hidden_size = 512
    return model


def small_model(file: str, smallest: str) -> tuple[str, Callable[[], nn.Module]]:
    """
    What is measured of a file of timm.

    Args:
        smallest (`str`): Its smallest listed model.

    Returns:
        A name for the table, and what builds it with random weights.
    """
    if file in BUILT:
        return f"{file} (narrower)", BUILT[file]
    if file in SMALLER:
        name, fields = SMALLER[file]
        return f"{name} (narrower)", lambda: timm.create_model(name, num_classes=CLASSES, **fields)
    return smallest, lambda: timm.create_model(smallest, num_classes=CLASSES)
