"""Prune half of the channels of a small ResNet and ship the smaller network as TorchScript.

The network learns scikit-learn's 8x8 handwritten digits on the CPU. It is trained dense; then half of its channels are
masked, in rounds with training in between; then the masked channels are taken out, and the network that is left is trained
briefly, exported, reloaded and compared. The table at the end shows accuracy, size and speed at every stage.

    python examples/digits.py                   # about a minute on two cores, leaves no files behind
    python examples/digits.py --output out      # keeps the saved file of every stage in out/

Besides fxprune it needs scikit-learn, for the images.
"""

import argparse
import copy
import math
import statistics
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tabulate import tabulate
from torch import Tensor, nn
from torch.utils.benchmark import Timer
from torch.utils.flop_counter import FlopCounterMode

import fxprune

AMOUNT_AFTER_ROUND = (0.25, 0.40, 0.50)  # cumulative share of the channels of every layer
BATCH_SIZE = 128
DENSE_RATE, ROUND_RATE = 3e-3, 1e-3  # peak learning rates; a pruned network only has to recover, so it moves less
WARM_UP, TIMED_ROUNDS = 5, 40
HEADERS = ("stage", "test accuracy %", "channels", "parameters", "FLOPs of an image", "file kB", "ms for 128 images")
NOTE = """\
Masks make nothing smaller: they let the network be trained as if it were. Then shrink takes out what they hold at zero,
checks that the smaller network computes what the masked one did, and leaves it so. The TorchScript file also holds the
code of the network."""


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
        self.stem = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(32)
        self.layer1 = ResidualBlock(32, 32)
        self.layer2 = ResidualBlock(32, 64, stride=2)
        self.layer3 = ResidualBlock(64, 128, stride=2)
        self.classifier = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.classifier(x.mean((2, 3)))


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


def channels(module: nn.Module) -> int:
    """Count the channels that the convolutions compute, without those that a mask holds at zero."""
    buffers = dict(module.named_buffers())
    total = 0
    for name, parameter in module.named_parameters():
        if parameter.dim() == 4:
            mask = buffers.get(name.removesuffix("_orig") + "_mask0")  # one flag for each position along dimension 0
            total += len(parameter) if mask is None else int(mask.count_nonzero())
    return total


@torch.no_grad()
def measure(stage: str, module: nn.Module, file: Path, images: Tensor, labels: Tensor) -> list[str]:
    """Return one row of the table; only the latency is still missing."""
    module.eval()
    accuracy = (module(images).argmax(1) == labels).float().mean().item()
    parameters = sum(parameter.numel() for parameter in module.parameters())
    with FlopCounterMode(display=False) as counter:
        module(images[:1])
    counts = (channels(module), parameters, counter.get_total_flops())
    return [stage, f"{100 * accuracy:.2f}", *(f"{n:,}" for n in counts), f"{file.stat().st_size / 1000:.1f}"]


@torch.no_grad()
def latencies(modules: list[nn.Module], images: Tensor) -> list[float]:
    """Return the median time of one run of each, in milliseconds; run in turn, so that all meet the same load."""
    timers = [Timer("module(images)", globals={"module": module.eval(), "images": images}) for module in modules]
    rounds = [[timer.timeit(1).mean for timer in timers] for _ in range(TIMED_ROUNDS + WARM_UP)][WARM_UP:]
    return [1000 * statistics.median(times) for times in zip(*rounds, strict=True)]


def run(output: Path, seed: int, epochs: int) -> None:
    torch.set_num_threads(1)  # the layers are so small that a second thread waits more than it works
    torch.manual_seed(seed)
    train_images, test_images, train_labels, test_labels = load_data()
    rows: list[list[str]] = []
    networks: list[nn.Module] = []

    def record(stage: str, module: nn.Module, file: Path) -> None:
        rows.append(measure(stage, module, file, test_images, test_labels))
        networks.append(copy.deepcopy(module))
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

    # 2. Find out which channels have to go together, and mask in rounds those whose weights are smallest. A plan replaces
    # the one before. Masking keeps the identity of every Parameter, so the one optimizer goes on.
    dependencies = fxprune.analyze(gm)
    for number, amount in enumerate(AMOUNT_AFTER_ROUND, start=1):
        fxprune.mask(gm, fxprune.plan(dependencies, amount))
        train(gm, optimizer, train_images, train_labels, max(1, epochs // 2), ROUND_RATE)
        save_and_record(f"masked, round {number}", gm)

    # 3. Take the masked channels out of every layer. Before it returns, shrink runs both networks in eval and in train mode
    # and raises if they differ. Parameters that lost something are new objects, so the optimizer has to be new, too.
    fxprune.shrink(gm)  # in place, as all of the above
    save_and_record("shrunk", gm)
    optimizer = torch.optim.AdamW(gm.parameters(), weight_decay=1e-2)
    train(gm, optimizer, train_images, train_labels, max(1, epochs // 4), ROUND_RATE)
    save_and_record("trained on", gm)

    # 4. Export, reload.
    file = output / "digits.torchscript.pt"
    fxprune.to_torchscript(gm, example_inputs).save(str(file))
    reloaded = torch.jit.load(str(file))
    record("TorchScript reloaded", reloaded, file)
    with torch.no_grad():
        outputs, expected = reloaded(test_images), gm(test_images)
    torch.testing.assert_close(outputs, expected)  # raises if the two do not agree
    difference = (outputs - expected).abs().max().item()

    for row, milliseconds in zip(rows, latencies(networks, test_images[:BATCH_SIZE]), strict=True):
        row.append(f"{milliseconds:.2f}")
    print(f"\n{tabulate(rows, HEADERS, disable_numparse=True, colalign=('left', *['right'] * 6))}\n\n{NOTE}")
    print(f"Reloaded and shrunk outputs agree on all test images; the largest difference is {difference:.1e}.")


def main() -> None:
    parser = argparse.ArgumentParser(description="Prune half of the channels of a small ResNet on handwritten digits.")
    parser.add_argument("--output", type=Path, help="keep the saved files in this directory")
    parser.add_argument("--seed", type=int, default=0, help="initial weights, order and shifts of the images")
    parser.add_argument(
        "--epochs", type=int, default=16, help="dense epochs; every round trains half as many, the shrunk network a quarter"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        output = args.output or Path(scratch)
        output.mkdir(parents=True, exist_ok=True)
        run(output, args.seed, args.epochs)


if __name__ == "__main__":
    main()
