"""Models of timm."""

from __future__ import annotations

from benchmarks.robustness.zoo.architecture import Architecture, Kind, timm

__all__ = ["TIMM"]

_CONV: Kind = "convolutional"
_VIEW: Kind = "vision transformer"

TIMM: tuple[Architecture, ...] = (
    timm("ResNet", _CONV, "resnet10t", channels=(16, 32, 32, 64)),
    timm("ConvNeXt", _CONV, "convnext_atto", depths=(1, 1, 2, 1), dims=(16, 32, 32, 64)),
    timm("MobileNet v2", _CONV, "mobilenetv2_035"),
    timm("MobileNet v3", _CONV, "mobilenetv3_small_050"),
    timm("MobileNet v4", _CONV, "mobilenetv4_conv_small_050"),
    timm("DenseNet", _CONV, "densenet121", growth_rate=8, block_config=(2, 2, 2, 2)),
    timm("RegNet", _CONV, "regnety_002"),
    timm("ConvMixer", _CONV, "ConvMixer", dim=32, depth=3, kernel_size=5),
    timm("ViT", _VIEW, "vit_tiny_patch16_224", img_size=64, embed_dim=32, depth=2, num_heads=4),
    timm(
        "EVA",
        _VIEW,
        "eva02_tiny_patch14_224",
        img_size=56,
        size=56,
        embed_dim=32,
        depth=2,
        num_heads=4,
    ),
    timm("BEiT", _VIEW, "beitv2_base_patch16_224", img_size=64, embed_dim=32, depth=2, num_heads=4),
    timm("CaiT", _VIEW, "cait_xxs24_224", img_size=64, embed_dim=32, depth=2, num_heads=4),
    timm("XCiT", _VIEW, "xcit_nano_12_p16_224", img_size=64, embed_dim=32, depth=2, num_heads=4),
    timm(
        "Swin",
        _VIEW,
        "swin_tiny_patch4_window7_224",
        img_size=56,
        size=56,
        embed_dim=16,
        depths=(1, 1),
        num_heads=(2, 2),
    ),
    timm("MobileViT", _VIEW, "mobilevit_xxs"),
    timm("EdgeNeXt", _VIEW, "edgenext_xx_small"),
    timm("EfficientViT", _VIEW, "efficientvit_b0"),
    timm(
        "VOLO",
        _VIEW,
        "VOLO",
        layers=(1, 1, 1, 1),
        img_size=64,
        embed_dims=(16, 32, 32, 32),
        num_heads=(2, 2, 2, 2),
        mlp_ratio=3,
        outlook_attention=(True, False, False, False),
    ),
    timm(
        "Hiera",
        _VIEW,
        "hiera_tiny_224",
        img_size=(64, 64),
        embed_dim=16,
        num_heads=1,
        stages=(1, 1, 1, 1),
    ),
    timm("MLP-Mixer", _VIEW, "MlpMixer", img_size=64, embed_dim=32, num_blocks=2),
    timm(
        "Sequencer",
        _VIEW,
        "sequencer2d_s",
        img_size=56,
        size=56,
        layers=(1, 1, 1, 1),
        embed_dims=(16, 32, 32, 32),
        hidden_sizes=(4, 8, 8, 8),
    ),
    timm(
        "DaViT",
        _VIEW,
        "davit_tiny",
        depths=(1, 1, 1, 1),
        embed_dims=(16, 32, 32, 64),
        num_heads=(1, 2, 2, 4),
    ),
)
