"""Classifiers that are trained here, on real data that is at hand without a download: digits, and documentation."""

from __future__ import annotations

import ast
import functools
import importlib.util
import itertools
import random
import re
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.zoo import shim

_LIBRARIES = ("python", "numpy", "scipy", "sklearn", "networkx", "sympy", "torch")
_TEXTS = 1000  # of each library
_TEXTS_OF_A_FILE = 20
_WORDS = (6, 24)  # of a text, at least and at most
_VOCABULARY = 2000

Text = tuple[str, ...]


@dataclass(frozen=True)
class Data:
    """Inputs and labels to train with and to test with."""

    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor

    def few(self, samples: int | None) -> Data:
        """Return the first samples of either part, or all of them."""
        return Data(self.x[:samples], self.y[:samples], self.test_x[:samples], self.test_y[:samples])


def unchanged(x: Tensor, _: torch.Generator) -> Tensor:
    """Return inputs as they are."""
    return x


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return every image moved by up to one pixel in each direction, drawn from the generator."""
    windows = F.pad(images, (1, 1, 1, 1)).unfold(2, 8, 1).unfold(3, 8, 1)
    dy, dx = torch.randint(3, (2, len(images)), generator=generator)
    return windows[torch.arange(len(images)), :, dy, dx]


@dataclass(frozen=True)
class Task:
    """A model, and what it learns.

    Attributes:
        build: makes the model with new weights.
        data: from a seed to the data, split by it.
        epochs: how often the data is gone through to learn it.
        tuning: how often after pruning.
        rate: the highest learning rate.
        augmented: changes training inputs by a generator.
    """

    build: Callable[[], nn.Module]
    data: Callable[[int], Data]
    epochs: int
    tuning: int
    rate: float
    augmented: Callable[[Tensor, torch.Generator], Tensor] = unchanged


# -- data ------------------------------------------------------------------------------------------------------------------


def digits(seed: int) -> Data:
    """Return scikit-learn's 1797 images of digits, 8 x 8 pixels in [0, 1]: one half to train with, one to test with."""
    from sklearn.datasets import load_digits

    found = load_digits()
    x, y = torch.tensor(found.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(found.target)
    train, test = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).tensor_split(2)
    return Data(x[train], y[train], x[test], y[test])


def documentation(seed: int, libraries: tuple[str, ...] = _LIBRARIES, texts: int = _TEXTS) -> Data:
    """Return paragraphs of docstrings as numbers of words; the label is the library that they are from.

    The texts are those of the installed versions. All of one file are in the same half, since one file's texts are alike.

    Args:
        seed: splits the files, and puts the texts in an order.
        libraries: which.
        texts: about how many of each.
    """
    halves: tuple[list[tuple[Text, int]], list[tuple[Text, int]]] = ([], [])
    for label, name in enumerate(libraries):
        files = list(_texts(name, texts))
        random.Random(seed).shuffle(files)
        for i, found in enumerate(files):
            halves[i % 2].extend((text, label) for text in found)
    counts = Counter(word for text, _ in halves[0] for word in text)
    usual = sorted(counts, key=lambda word: (-counts[word], word))[: _VOCABULARY - 2]
    numbers = {word: i for i, word in enumerate(usual, start=2)}
    return Data(*_numbered(halves[0], numbers, seed), *_numbered(halves[1], numbers, seed))


def _numbered(texts: list[tuple[Text, int]], numbers: dict[str, int], seed: int) -> tuple[Tensor, Tensor]:
    """Return texts in any order as rows of numbers, 0 where there is no word and 1 for an unusual one, and their labels."""
    random.Random(seed).shuffle(texts)
    rows = [[numbers.get(word, 1) for word in text] + [0] * (_WORDS[1] - len(text)) for text, _ in texts]
    return torch.tensor(rows), torch.tensor([label for _, label in texts])


@functools.cache
def _texts(library: str, most: int) -> list[list[Text]]:
    """Return texts of a library, those of each file together, none of them twice; no more files than ``most`` texts take."""
    spec = importlib.util.find_spec(library)  # none for Python itself
    root = Path(sysconfig.get_path("stdlib")) if spec is None or spec.origin is None else Path(spec.origin).parent
    left_out = {"site-packages", "tests", "test", "idlelib"}
    files = sorted(file for file in root.rglob("*.py") if not left_out & set(file.relative_to(root).parts))
    random.Random(0).shuffle(files)
    seen: set[Text] = set()
    found: list[list[Text]] = []
    for file in files:
        texts = list(itertools.islice(dict.fromkeys(t for t in _paragraphs(file) if t not in seen), _TEXTS_OF_A_FILE))
        seen.update(texts)
        found.append(texts)
        if len(seen) >= most:
            break
    return found


def _paragraphs(file: Path) -> Iterator[Text]:
    """Yield the words of every paragraph of prose in the docstrings of a file."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                words = re.findall("[a-z]+", paragraph.lower())
                if ">>>" not in paragraph and len(words) >= _WORDS[0]:
                    yield tuple(words[: _WORDS[1]])


# -- models ----------------------------------------------------------------------------------------------------------------


class _Residual(nn.Module):
    """Two 3x3 convolutions around which the input is added back."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, two residual blocks at each of 8x8, 4x4 and 2x2 pixels, and a linear classifier of ten digits."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        sizes = [(width, width, 1), (width, width, 1), (width, 2 * width, 2), (2 * width, 2 * width, 1)]
        sizes += [(2 * width, 4 * width, 2), (4 * width, 4 * width, 1)]
        self.blocks = nn.Sequential(*(_Residual(*size) for size in sizes))
        self.classifier = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(F.relu(self.bn(self.stem(x)))).mean((2, 3)))


class TextClassifier(nn.Module):
    """Embeddings of words and places, blocks of timm's vision transformer, and a classifier of the mean over the words."""

    def __init__(self, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        super().__init__()
        shim.install()
        from timm.models.vision_transformer import Block

        self.words, self.places = nn.Embedding(_VOCABULARY, width), nn.Embedding(_WORDS[1], width)
        for embedding in (self.words, self.places):
            nn.init.normal_(embedding.weight, std=0.02)
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(_LIBRARIES))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        return self.head(self.norm(self.blocks(x)).mean(1))


def vision_transformer(width: int = 64, depth: int = 3, heads: int = 4) -> nn.Module:
    """Return timm's vision transformer for digits, in 16 patches of 2 x 2 pixels."""
    shim.install()
    from timm.models.vision_transformer import VisionTransformer

    sizes: dict[str, Any] = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10}
    model = VisionTransformer(**sizes, embed_dim=width, depth=depth, num_heads=heads)
    assert model.pos_embed is not None
    nn.init.normal_(model.pos_embed, std=0.2)  # with 0.02, for wider models, this one is slow to tell the places apart
    return model


TASKS = {
    "digits ResNet": Task(ResNet, digits, 12, 2, 3e-3, shifted),
    "digits ViT": Task(vision_transformer, digits, 20, 3, 1e-3),
    "text classifier": Task(TextClassifier, documentation, 3, 1, 1e-3),
}
