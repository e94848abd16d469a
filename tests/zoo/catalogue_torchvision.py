"""The models of torchvision: every family of classification, segmentation and video models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from tests.zoo.recipe import Recipe, pixels

# Name, extent of the input, options of the builder. Sizes are small ones that leave the last stage more than one
# position; where a builder takes no small ones, the comment says why.
_MODELS: tuple[tuple[str, tuple[int, ...], dict[str, Any]], ...] = (
    ("alexnet", (96, 96), {}),
    ("convnext_tiny", (64, 64), {}),
    ("densenet121", (64, 64), {}),
    ("efficientnet_b0", (64, 64), {}),
    ("efficientnet_v2_s", (64, 64), {}),
    ("googlenet", (64, 64), {"init_weights": False}),
    ("inception_v3", (299, 299), {"init_weights": False}),  # its auxiliary classifier has a 5 x 5 kernel on the pooled map
    ("maxvit_t", (224, 224), {}),  # every stage is cut into windows of 7 x 7
    ("mnasnet0_5", (64, 64), {}),
    ("mobilenet_v2", (64, 64), {}),
    ("mobilenet_v3_large", (64, 64), {}),
    ("mobilenet_v3_small", (64, 64), {}),
    ("regnet_x_400mf", (64, 64), {}),
    ("regnet_y_400mf", (64, 64), {}),
    ("resnet18", (64, 64), {}),
    ("resnet34", (64, 64), {}),
    ("resnet50", (64, 64), {}),
    ("resnext50_32x4d", (64, 64), {}),
    ("shufflenet_v2_x0_5", (64, 64), {}),
    ("shufflenet_v2_x1_0", (64, 64), {}),
    ("squeezenet1_0", (64, 64), {}),
    ("squeezenet1_1", (64, 64), {}),
    ("swin_t", (64, 64), {}),
    ("swin_v2_t", (64, 64), {}),
    ("vgg11", (64, 64), {}),
    ("vgg11_bn", (64, 64), {}),
    ("vit_b_16", (64, 64), {"image_size": 64}),
    ("vit_b_32", (64, 64), {"image_size": 64}),
    ("wide_resnet50_2", (64, 64), {}),
    ("deeplabv3_mobilenet_v3_large", (64, 64), {"weights_backbone": None}),
    ("deeplabv3_resnet50", (64, 64), {"weights_backbone": None, "aux_loss": True}),
    ("fcn_resnet50", (64, 64), {"weights_backbone": None, "aux_loss": True}),
    ("lraspp_mobilenet_v3_large", (64, 64), {"weights_backbone": None}),
    ("mc3_18", (8, 32, 32), {}),
    ("mvit_v1_b", (16, 224, 224), {}),  # its builder fixes the extent that positions are learnt for
    ("mvit_v2_s", (16, 224, 224), {}),
    ("r2plus1d_18", (8, 32, 32), {}),
    ("r3d_18", (8, 32, 32), {}),
    ("s3d", (14, 224, 224), {}),  # ends in a pool over 2 x 7 x 7
    ("swin3d_t", (4, 64, 64), {}),
)


def recipes() -> Iterator[Recipe]:
    """Yield the recipes, by task and name."""
    for name, sizes, options in _MODELS:
        yield _recipe(name, sizes, options)


def _recipe(name: str, sizes: tuple[int, ...], options: dict[str, Any]) -> Recipe:
    def construct() -> nn.Module:
        from torchvision import models

        model: nn.Module = models.get_model(name, weights=None, **options)
        return model

    return Recipe("torchvision", name, construct, lambda: ((pixels(*sizes),), {}))
