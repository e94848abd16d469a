"""The source knows operators and torch's own modules, but no architecture, model class or layer name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import fxprune

_ROOT = Path(fxprune.__file__).parent
_NAMES = [
    "resnet",
    "resnext",
    "densenet",
    "googlenet",
    "inception",
    "mobilenet",
    "mnasnet",
    "efficientnet",
    "shufflenet",
    "squeezenet",
    "regnet",
    "convnext",
    "vgg",
    "alexnet",
    "vit",
    "deit",
    "swin",
    "deeplab",
    "bert",
    "roberta",
    "gpt",
    "bloom",
    "llama",
    "qwen",
    "gemma",
    "phi",
    "mistral",
    "mixtral",
    "whisper",
    "mamba",
    "detr",
    "levit",
    "mvit",
    "pit",
    "coat",
    "xcit",
    "volo",
    "cait",
    "tnt",
    "nest",
    "maxvit",
    "edgenext",
    "mobilevit",
    "res2net",
    "resnest",
    "sknet",
    "dpn",
    "hrnet",
    "fasternet",
    "repvit",
    "torchvision",
    "timm",
    "transformers",
    "layer1",
    "layer2",
    "qkv",
    "q_proj",
    "lm_head",
    "classifier",
    "backbone",
    "encoder",
    "decoder",
]
_WORD = re.compile(rf"(?<![a-z])({'|'.join(_NAMES)})(?![a-z])")


def _words(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield identifiers and strings with their lines, without docstrings."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
        and isinstance(node.body[0].value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute):
            yield node.lineno, node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def test_the_source_names_no_architecture_and_no_layer() -> None:
    files = [*_ROOT.rglob("*.py"), *(_ROOT / "passes").rglob("*.py")]
    found = [
        f"{file.name}:{line}: {word!r}"
        for file in sorted(set(files))
        for line, word in _words(ast.parse(file.read_text(encoding="utf-8")))
        if _WORD.search(word.lower())
    ]
    # torch.nn.MultiheadAttention has attributes, and the dispatcher operators, of these names.
    known = r"'((in|out|q|k|v)_proj(_weight|_bias)?|_transformer_encoder_layer_fwd|\w+::\w+( \w+::\w+)*)'"
    assert [f for f in found if not re.search(known, f)] == []
    assert len(files) > 80
