"""Prune 80 % of the weights of a small ResNet and ship what is left as TorchScript.

The network learns scikit-learn's 8x8 handwritten digits on the CPU. It is trained dense, pruned in three rounds with
training in between, finalized (the masks are baked into the weights), exported, reloaded and compared. The table
at the end shows accuracy, remaining parameters and file size at every stage.

    python examples/digits_sparse.py                # less than a minute on two cores, leaves no files behind
    python examples/digits_sparse.py --output out   # keeps the saved file of every stage in out/

Besides fxprune it needs scikit-learn, for the images.
"""

import argparse
import gzip
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tabulate import tabulate
from torch import Tensor, nn

import fxprune

SPARSITY_AFTER_ROUND = (0.50, 0.70, 0.80)  # cumulative share of all conv and linear weights; the steps get smaller
BATCH_SIZE = 128
DENSE_RATE, ROUND_RATE = 3e-3, 1e-3  # peak learning rates; a pruned network only has to recover, so it moves less
HEADERS = ("stage", "test accuracy %", "non-zero parameters", "weight sparsity %", "file kB", "file kB, gzipped")
NOTE = """\
A zero takes as many bytes as any other number, so pruning does not shrink the file itself; it shrinks the gzipped
file. Before finalizing, every pruned weight is stored whole and its mask comes on top. The TorchScript file also
holds the code of the network."""


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added back."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:  # the sum needs both sides in the same shape
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class SmallResNet(nn.Module):
    """A stem, three residual blocks (8x8, 4x4 and 2x2 pixels) and a linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.layer1 = ResidualBlock(16, 16)
        self.layer2 = ResidualBlock(16, 32, stride=2)
        self.layer3 = ResidualBlock(32, 64, stride=2)
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def load_data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return train images, test images, train labels, test labels; the split does not depend on --seed."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16  # pixels are 0..16
    labels = torch.tensor(digits.target)
    train, test = train_test_split(range(len(labels)), test_size=0.25, stratify=digits.target, random_state=0)
    return images[train], images[test], labels[train], labels[test]


def shift(images: Tensor) -> Tensor:
    """Move every image by up to one pixel in each direction, so that 1,347 training images go further."""
    windows = F.pad(images, (1, 1, 1, 1)).unfold(2, 8, 1).unfold(3, 8, 1)  # all 3x3 shifts of every image
    dy, dx = torch.randint(3, (2, len(images)))
    return windows[torch.arange(len(images)), :, dy, dx]


def train(
    module: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, epochs: int, peak_rate: float
) -> None:
    """Train for some epochs; the learning rate rises so that the weights can move, then falls so that they settle."""
    steps = math.ceil(len(images) / BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak_rate, epochs=epochs, steps_per_epoch=steps)
    module.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH_SIZE):
            optimizer.zero_grad()
            F.cross_entropy(module(shift(images[batch])), labels[batch], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    module.eval()


def effective_parameters(module: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters as the network uses them: one that is still masked is `w_orig` times `w_mask`."""
    buffers = dict(module.named_buffers())
    for name, parameter in module.named_parameters():
        mask = buffers.get(name.removesuffix("_orig") + "_mask")
        yield parameter if mask is None else parameter * mask


@torch.no_grad()
def measure(stage: str, module: nn.Module, file: Path, images: Tensor, labels: Tensor) -> list[str | float]:
    """Return one row of the table."""
    module.eval()
    accuracy = (module(images).argmax(1) == labels).float().mean().item()
    parameters = list(effective_parameters(module))
    nonzero = sum(int(p.count_nonzero()) for p in parameters)
    weights = torch.cat([p.flatten() for p in parameters if p.dim() > 1])
    sparsity = (weights == 0).float().mean().item()
    content = file.read_bytes()
    sizes = len(content) / 1000, len(gzip.compress(content)) / 1000
    return [stage, f"{100 * accuracy:.2f}", f"{nonzero:,}", f"{100 * sparsity:.1f}", *(f"{s:.1f}" for s in sizes)]


def run(output: Path, seed: int, epochs: int) -> None:
    torch.set_num_threads(1)  # the layers are so small that a second thread waits more than it works
    torch.manual_seed(seed)
    train_images, test_images, train_labels, test_labels = load_data()
    rows = []

    def record(stage: str, module: nn.Module, file: Path) -> None:
        rows.append(measure(stage, module, file, test_images, test_labels))
        print(f"{stage}: {rows[-1][1]} % of the test images right")

    def save_and_record(stage: str, module: nn.Module) -> None:
        file = output / f"{stage.replace(' ', '_')}.pt"
        torch.save(module.state_dict(), file)
        record(stage, module, file)

    # 1. Capture the model as a torch.fx graph and train it dense.
    example_inputs = (train_images[:2],)
    gm = fxprune.capture(SmallResNet(), example_inputs)
    optimizer = torch.optim.AdamW(gm.parameters(), weight_decay=1e-2)
    train(gm, optimizer, train_images, train_labels, epochs, DENSE_RATE)
    save_and_record("dense", gm)

    # 2. Prune in rounds. Weights with more than one dimension are those of the conv and linear layers; biases and
    # BatchNorm parameters are few and stay. Masking keeps the identity of every Parameter, so the one optimizer goes on.
    names = [name for name, parameter in gm.named_parameters() if parameter.dim() > 1]
    before = 0.0
    for number, target in enumerate(SPARSITY_AFTER_ROUND, start=1):
        amount = (target - before) / (1 - before)  # a float amount is a share of the entries that are still unpruned
        fxprune.global_unstructured(gm, names, fxprune.L1Unstructured, amount=amount)
        train(gm, optimizer, train_images, train_labels, max(1, epochs // 2), ROUND_RATE)
        save_and_record(f"round {number}", gm)
        before = target

    # 3. Bake the masks into the weights, export, reload.
    fxprune.finalize(gm)  # in place, as all of the above
    save_and_record("finalized", gm)
    file = output / "digits.torchscript.pt"
    fxprune.to_torchscript(gm, example_inputs).save(str(file))
    reloaded = torch.jit.load(str(file))
    record("TorchScript reloaded", reloaded, file)
    with torch.no_grad():
        outputs, expected = reloaded(test_images), gm(test_images)
    torch.testing.assert_close(outputs, expected)  # raises if the two do not agree
    difference = (outputs - expected).abs().max().item()

    print(f"\n{tabulate(rows, HEADERS, disable_numparse=True, colalign=('left', *['right'] * 5))}\n\n{NOTE}")
    print(f"Reloaded and finalized outputs agree on all test images; the largest difference is {difference:.1e}.")


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune 80 % of a small ResNet on handwritten digits.")
    parser.add_argument("--output", type=Path, help="keep the saved files in this directory")
    parser.add_argument("--seed", type=int, default=0, help="initial weights, order and shifts of the images")
    parser.add_argument("--epochs", type=int, default=20, help="dense epochs; every round trains half as many")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        output = args.output or Path(scratch)
        output.mkdir(parents=True, exist_ok=True)
        run(output, args.seed, args.epochs)


if __name__ == "__main__":
    main()
