"""Prune a classifier of torchvision or timm by its name; nothing here knows any architecture.

    python examples/classifier.py                                           # half of the channels of a ResNet-50
    python examples/classifier.py --library timm --model convnext_tiny
    python examples/classifier.py --model vit_b_16 --amount 0.25 --torchscript vit.pt --onnx vit.onnx

It prints what cannot be removed and why, what the model costs before and after, and that the smaller one still takes any
batch size. Weights are random unless --pretrained downloads them; a pretrained model has to be trained on afterwards.
"""

import argparse
from pathlib import Path

import torch
from torch import nn

import fxprune


def build(library: str, name: str, pretrained: bool) -> nn.Module:
    """Return a model of one of the two libraries, in eval mode."""
    model: nn.Module
    if library == "torchvision":
        import torchvision

        model = torchvision.models.get_model(name, weights="DEFAULT" if pretrained else None)
    else:
        import timm

        model = timm.create_model(name, pretrained=pretrained)
    return model.eval()


def what_stays_whole(deps: fxprune.Dependencies, most: int = 8) -> str:
    """Return a line for each reason why rows or columns of weights stay: an example of what it holds, and how many more."""
    held: dict[str, list[str]] = {}
    for name, parameter in deps.gm.named_parameters():
        for dim in range(min(parameter.dim(), 2)):  # what comes after are the sides of kernels, which always stay
            explanation = deps.explain(name, dim)
            if explanation.size > 1 and not explanation.groups:
                reason = "; ".join(map(str, explanation.reasons))
                held.setdefault(reason, []).append(str(explanation))
    lines = [f"  {first}" + (f" (and {len(more)} more like it)" if more else "") for first, *more in held.values()]
    left_out = [f"  ... and {len(lines) - most} more"] if len(lines) > most else []
    return "\n".join([*lines[:most], *left_out])


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune a classifier of torchvision or timm.")
    parser.add_argument("--library", choices=("torchvision", "timm"), default="torchvision")
    parser.add_argument("--model", default="resnet50", help="the model's name in the library")
    parser.add_argument("--pretrained", action="store_true", help="download the library's weights")
    parser.add_argument("--amount", type=float, default=0.5, help="share of the channels, heads ... to remove")
    parser.add_argument("--image-size", type=int, default=224, help="height and width of an image in pixels")
    parser.add_argument("--torchscript", type=Path, help="save the smaller model as TorchScript in this file")
    parser.add_argument("--onnx", type=Path, help="save it as ONNX in this file")
    args = parser.parse_args()

    torch.manual_seed(0)
    model = build(args.library, args.model, args.pretrained)
    x = torch.randn(2, 3, args.image_size, args.image_size)

    deps = fxprune.analyze(fxprune.capture(model, x))
    print(f"{args.model}: {len(deps.groups)} groups. These stay whole:\n{what_stays_whole(deps)}\n")

    # All it takes. Before it returns, the smaller model has been compared with the masked one in eval and in train mode.
    slim = fxprune.prune(model, x, args.amount)
    fxprune.summary(model, slim, x)

    with torch.no_grad():
        print(f"\nlogits of 3 images: {tuple(slim(torch.randn(3, *x.shape[1:])).shape)}")
    if args.torchscript:
        fxprune.to_torchscript(slim, x).save(str(args.torchscript))
    if args.onnx:
        fxprune.to_onnx(slim, x, args.onnx)


if __name__ == "__main__":
    main()
