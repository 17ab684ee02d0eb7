"""One tiny architecture as several libraries build it, untrained. The first model of each is timm's."""

from collections.abc import Callable

import open_clip
import timm
import torch
import transformers as hf
from timm.models import focalnet, metaformer, resnetv2
from torch import nn
from torchvision import models as tv
from torchvision.models import convnext, regnet, swin_transformer
from torchvision.models.vision_transformer import VisionTransformer

from hf_watermark.backbones.names import Renamed, best_spelling, in_form_of


Build = Callable[[], nn.Module]
CLASSES = 4
KNOWN = {"num_labels": CLASSES}
SIDE = 32


def of_timm(name: str, **arguments) -> Build:
    return lambda: timm.create_model(name, num_classes=CLASSES, **arguments)


VIT = {"img_size": SIDE, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3}
HF_VIT = {"image_size": SIDE, "patch_size": 8, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3}
HF_VIT |= {"intermediate_size": 192, "layer_norm_eps": 1e-6, **KNOWN}
SWIN = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 3), "window_size": 4, "patch_size": 2, "img_size": SIDE}
HF_SWIN = {
    "image_size": SIDE,
    "patch_size": 2,
    "embed_dim": 24,
    "depths": [2, 2],
    "num_heads": [2, 3],
    "window_size": 4,
    **KNOWN,
}
WIDTHS = (16, 24, 32, 48)
DEPTHS = (1, 2, 2, 1)

PAIRS: dict[str, dict[str, Build]] = {
    "resnet": {
        "timm": of_timm("resnet18", channels=[16, 24, 32, 48]),
        "transformers": lambda: hf.ResNetForImageClassification(
            hf.ResNetConfig(
                embedding_size=64, hidden_sizes=[16, 24, 32, 48], depths=[2] * 4, layer_type="basic", **KNOWN
            )
        ),
    },
    "resnet bottleneck": {
        "timm": of_timm("resnet26"),
        "transformers": lambda: hf.ResNetForImageClassification(hf.ResNetConfig(depths=[2] * 4, **KNOWN)),
        "torchvision": lambda: tv.ResNet(tv.resnet.Bottleneck, [2] * 4, num_classes=CLASSES),
    },
    "vgg": {"timm": of_timm("vgg11_bn"), "torchvision": lambda: tv.vgg11_bn(num_classes=CLASSES)},
    "densenet": {
        "timm": of_timm("densenet121", block_config=(2, 2, 2), growth_rate=16),
        "torchvision": lambda: tv.DenseNet(16, (2, 2, 2), 32, num_classes=CLASSES),
    },
    "convnext": {
        "timm": of_timm("convnext_atto", dims=WIDTHS, depths=DEPTHS, conv_mlp=False),
        "transformers": lambda: hf.ConvNextForImageClassification(
            hf.ConvNextConfig(hidden_sizes=list(WIDTHS), depths=list(DEPTHS), **KNOWN)
        ),
        "torchvision": lambda: tv.ConvNeXt(
            [convnext.CNBlockConfig(w, n, d) for w, n, d in zip(WIDTHS, (*WIDTHS[1:], None), DEPTHS, strict=True)],
            num_classes=CLASSES,
        ),
    },
    "convnextv2": {
        "timm": of_timm("convnextv2_atto", dims=WIDTHS, depths=DEPTHS),
        "transformers": lambda: hf.ConvNextV2ForImageClassification(
            hf.ConvNextV2Config(hidden_sizes=list(WIDTHS), depths=list(DEPTHS), **KNOWN)
        ),
    },
    "swin": {
        "timm": of_timm("swin_tiny_patch4_window7_224", **SWIN),
        "transformers": lambda: hf.SwinForImageClassification(hf.SwinConfig(**HF_SWIN)),
        "torchvision": lambda: tv.SwinTransformer([2, 2], 24, [2, 2], [2, 3], [4, 4], num_classes=CLASSES),
    },
    "swinv2": {
        "timm": of_timm("swinv2_tiny_window8_256", **SWIN),
        "transformers": lambda: hf.Swinv2ForImageClassification(hf.Swinv2Config(**HF_SWIN)),
        "torchvision": lambda: tv.SwinTransformer(
            [2, 2],
            24,
            [2, 2],
            [2, 3],
            [4, 4],
            num_classes=CLASSES,
            block=swin_transformer.SwinTransformerBlockV2,
            downsample_layer=swin_transformer.PatchMergingV2,
        ),
    },
    "vit": {
        "timm": of_timm("vit_tiny_patch16_224", **VIT),
        "transformers": lambda: hf.ViTForImageClassification(hf.ViTConfig(**HF_VIT)),
        "torchvision": lambda: VisionTransformer(SIDE, 8, 3, 3, 48, 192, num_classes=CLASSES),
    },
    "deit": {
        "timm": of_timm("deit_tiny_distilled_patch16_224", **VIT),
        "transformers": lambda: hf.DeiTForImageClassificationWithTeacher(hf.DeiTConfig(**HF_VIT)),
    },
    "clip": {
        "timm": of_timm("vit_base_patch16_clip_224", **VIT),
        "transformers": lambda: hf.CLIPVisionModelWithProjection(
            hf.CLIPVisionConfig(**{k: v for k, v in HF_VIT.items() if k != "num_labels"}, projection_dim=CLASSES)
        ),
        "open_clip": lambda: open_clip.transformer.VisionTransformer(SIDE, 8, 48, 3, 3, 4, output_dim=CLASSES),
    },
    "siglip": {
        "timm": of_timm("vit_base_patch16_siglip_224", **VIT),
        "transformers": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**HF_VIT)),
    },
    "dinov2": {
        "timm": of_timm("vit_small_patch14_dinov2", **VIT | {"img_size": SIDE}),
        "transformers": lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**HF_VIT)),
    },
    "dinov2 with registers": {
        "timm": of_timm("vit_small_patch14_reg4_dinov2", **VIT),
        "transformers": lambda: hf.Dinov2WithRegistersForImageClassification(hf.Dinov2WithRegistersConfig(**HF_VIT)),
    },
    "beit": {
        "timm": of_timm("beit_base_patch16_224", **VIT),
        "transformers": lambda: hf.BeitForImageClassification(
            hf.BeitConfig(**HF_VIT, use_relative_position_bias=True, use_mean_pooling=True)
        ),
    },
    "mobilenetv2": {
        "timm": of_timm("mobilenetv2_035"),
        "transformers": lambda: hf.MobileNetV2ForImageClassification(
            hf.MobileNetV2Config(depth_multiplier=0.35, finegrained_output=True, **KNOWN)
        ),
        "torchvision": lambda: tv.MobileNetV2(CLASSES, width_mult=0.35),
    },
    "mobilenetv3": {
        "timm": of_timm("mobilenetv3_small_100"),
        "torchvision": lambda: tv.mobilenet_v3_small(num_classes=CLASSES),
    },
    "efficientnet": {
        "timm": of_timm("efficientnet_b0"),
        "transformers": lambda: hf.EfficientNetForImageClassification(
            hf.EfficientNetConfig(width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, **KNOWN)
        ),
        "torchvision": lambda: tv.efficientnet_b0(num_classes=CLASSES),
    },
    "efficientnetv2": {
        "timm": of_timm("efficientnetv2_s"),
        "torchvision": lambda: tv.efficientnet_v2_s(num_classes=CLASSES),
    },
    "regnet": {
        "timm": of_timm("regnety_002"),
        "transformers": lambda: hf.RegNetForImageClassification(
            hf.RegNetConfig(
                embedding_size=32, hidden_sizes=[24, 56, 152, 368], depths=[1, 1, 4, 7], groups_width=8, **KNOWN
            )
        ),
        "torchvision": lambda: tv.RegNet(
            regnet.BlockParams.from_init_params(13, 24, 36.44, 2.49, 8, se_ratio=0.25), num_classes=CLASSES
        ),
    },
    "mobilevit": {
        "timm": of_timm("mobilevit_xxs"),
        "transformers": lambda: hf.MobileViTForImageClassification(
            hf.MobileViTConfig(
                hidden_sizes=[64, 80, 96],
                neck_hidden_sizes=[16, 16, 24, 48, 64, 80, 320],
                expand_ratio=2.0,
                image_size=64,
                **KNOWN,
            )
        ),
    },
    "mobilevitv2": {
        "timm": of_timm("mobilevitv2_050"),
        "transformers": lambda: hf.MobileViTV2ForImageClassification(
            hf.MobileViTV2Config(width_multiplier=0.5, **KNOWN)
        ),
    },
    "poolformer": {
        "timm": lambda: metaformer.MetaFormer(
            depths=DEPTHS,
            dims=WIDTHS,
            num_classes=CLASSES,
            downsample_norm=None,
            mlp_act=nn.GELU,
            mlp_bias=True,
            norm_layers=metaformer.GroupNorm1,
            layer_scale_init_values=1e-5,
            res_scale_init_values=None,
            use_mlp_head=False,
        ),
        "transformers": lambda: hf.PoolFormerForImageClassification(
            hf.PoolFormerConfig(hidden_sizes=list(WIDTHS), depths=list(DEPTHS), **KNOWN)
        ),
    },
    "pvtv2": {
        "timm": of_timm("pvt_v2_b1", embed_dims=(16, 32, 32, 64), depths=DEPTHS, num_heads=(1, 2, 2, 4)),
        "transformers": lambda: hf.PvtV2ForImageClassification(
            hf.PvtV2Config(
                hidden_sizes=[16, 32, 32, 64], depths=list(DEPTHS), num_attention_heads=[1, 2, 2, 4], **KNOWN
            )
        ),
    },
    "levit": {
        "timm": of_timm("levit_128s"),
        "transformers": lambda: hf.LevitForImageClassification(
            hf.LevitConfig(
                hidden_sizes=[128, 256, 384],
                num_attention_heads=[4, 6, 8],
                depths=[2, 3, 4],
                key_dim=[16, 16, 16],
                **KNOWN,
            )
        ),
    },
    "bit": {
        "timm": lambda: resnetv2.ResNetV2([1, 2, 1, 1], (128, 256, 384, 512), num_classes=CLASSES, stem_type="fixed"),
        "transformers": lambda: hf.BitForImageClassification(
            hf.BitConfig(
                hidden_sizes=[128, 256, 384, 512],
                depths=[1, 2, 1, 1],
                embedding_size=64,
                layer_type="preactivation",
                **KNOWN,
            )
        ),
    },
    "focalnet": {
        "timm": lambda: focalnet.FocalNet(
            embed_dim=24, depths=DEPTHS, num_classes=CLASSES, focal_levels=(2,) * 4, focal_windows=(3,) * 4
        ),
        "transformers": lambda: hf.FocalNetForImageClassification(
            hf.FocalNetConfig(embed_dim=24, hidden_sizes=[24, 48, 96, 192], depths=list(DEPTHS), **KNOWN)
        ),
    },
    "hiera": {
        "timm": of_timm("hiera_tiny_224", embed_dim=24, num_heads=1, stages=(1, 2, 2, 1)),
        "transformers": lambda: hf.HieraForImageClassification(
            hf.HieraConfig(embed_dim=24, num_heads=[1, 2, 4, 8], depths=[1, 2, 2, 1], **KNOWN)
        ),
    },
    "hgnetv2": {
        "timm": of_timm("hgnetv2_b0"),
        "transformers": lambda: hf.HGNetV2ForImageClassification(
            hf.HGNetV2Config(
                stem_channels=[3, 16, 16],
                hidden_sizes=[64, 256, 512, 1024],
                depths=[1, 1, 2, 1],
                stage_in_channels=[16, 64, 256, 512],
                stage_mid_channels=[16, 32, 64, 128],
                stage_out_channels=[64, 256, 512, 1024],
                stage_num_blocks=[1, 1, 2, 1],
                stage_numb_of_layers=[3] * 4,
                use_learnable_affine_block=True,
                **KNOWN,
            )
        ),
    },
    "swiftformer": {
        "timm": of_timm("swiftformer_xs"),
        "transformers": lambda: hf.SwiftFormerForImageClassification(hf.SwiftFormerConfig(**KNOWN)),
    },
    "lcnet": {
        "timm": of_timm("lcnet_100"),
        "transformers": lambda: hf.PPLCNetForImageClassification(hf.PPLCNetConfig(**KNOWN)),
    },
    "mobilenetv1": {
        "timm": of_timm("mobilenetv1_100"),
        "transformers": lambda: hf.MobileNetV1ForImageClassification(hf.MobileNetV1Config(**KNOWN)),
    },
    "maxvit": {
        "timm": of_timm("maxvit_tiny_tf_224"),
        "torchvision": lambda: tv.maxvit_t(num_classes=CLASSES),
    },
    "mnasnet": {"timm": of_timm("mnasnet_100"), "torchvision": lambda: tv.mnasnet1_0(num_classes=CLASSES)},
    "inception_v3": {
        "timm": of_timm("inception_v3"),
        "torchvision": lambda: tv.inception_v3(num_classes=CLASSES, aux_logits=False, init_weights=False),
    },
}
SIDES = {
    "mobilevit": 64,
    "mobilevitv2": 64,
    "levit": 224,
    "hiera": 224,
    "maxvit": 224,
    "inception_v3": 128,
    "swinv2": 32,
    "vgg": 32,
}


def images_of(name: str, count: int = 16) -> torch.Tensor:
    """Images `[n, 3, side, side]` that every model of an architecture takes."""
    side = SIDES.get(name, SIDE)
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1))


def ported(model: nn.Module, target: nn.Module) -> nn.Module:
    """The other library's model with the weights of this one."""
    given, wanted = model.state_dict(), target.state_dict()
    moved = Renamed(given, best_spelling(list(given), list(wanted)))
    state = {
        name: in_form_of(moved[name], tensor.shape) if name in moved else tensor for name, tensor in wanted.items()
    }
    fitting = {name: tensor if tensor.shape == wanted[name].shape else wanted[name] for name, tensor in state.items()}
    wanted.update(fitting)  # it says of which version it is
    target.load_state_dict(wanted, assign=True)
    return target.eval()
