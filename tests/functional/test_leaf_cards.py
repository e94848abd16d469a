"""The cards of standard layers: each against the layer itself, and all of them in text.

After a change of cards that is meant: ``python -m tests.functional.test_leaf_cards > tests/functional/leaf_cards.txt``.
"""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune
from fxprune.functional.leaf_cards import CARDS, LeafCard, card_of, is_opaque, is_standard, update_sizes
from fxprune.passes.lower import emit

GOLDEN = Path(__file__).with_name("leaf_cards.txt")
Sample = tuple[Callable[[int], nn.Module], tuple[int, ...]]

# How each layer is made with sizes that grow with a number, and the shape of its input where that is 1.
SAMPLES: dict[type[nn.Module], Sample] = {
    nn.Linear: (lambda n: nn.Linear(2 * n, 3 * n), (5, 2)),
    nn.Bilinear: (lambda n: nn.Bilinear(2 * n, 2 * n, 4 * n), (5, 2)),
    nn.Embedding: (lambda n: nn.Embedding(3 * n, 2 * n), (5,)),
    nn.EmbeddingBag: (lambda n: nn.EmbeddingBag(3 * n, 2 * n), (5, 2)),
    nn.PReLU: (lambda n: nn.PReLU(3 * n), (5, 3)),
    nn.Conv1d: (lambda n: nn.Conv1d(4 * n, 6 * n, 2, groups=2), (2, 4, 5)),
    nn.Conv2d: (lambda n: nn.Conv2d(4 * n, 6 * n, 2, groups=2), (2, 4, 5, 5)),
    nn.Conv3d: (lambda n: nn.Conv3d(4 * n, 6 * n, 2, groups=2), (2, 4, 3, 3, 3)),
    nn.ConvTranspose1d: (lambda n: nn.ConvTranspose1d(4 * n, 6 * n, 2, groups=2), (2, 4, 5)),
    nn.ConvTranspose2d: (lambda n: nn.ConvTranspose2d(4 * n, 6 * n, 2, groups=2), (2, 4, 5, 5)),
    nn.ConvTranspose3d: (lambda n: nn.ConvTranspose3d(4 * n, 6 * n, 2, groups=2), (2, 4, 3, 3, 3)),
    nn.BatchNorm1d: (lambda n: nn.BatchNorm1d(3 * n), (5, 3)),
    nn.BatchNorm2d: (lambda n: nn.BatchNorm2d(3 * n, affine=False), (5, 3, 2, 2)),
    nn.BatchNorm3d: (lambda n: nn.BatchNorm3d(3 * n, track_running_stats=False), (5, 3, 2, 2, 2)),
    nn.SyncBatchNorm: (lambda n: nn.SyncBatchNorm(3 * n), (5, 3)),
    nn.InstanceNorm1d: (lambda n: nn.InstanceNorm1d(3 * n, affine=True), (2, 3, 5)),
    nn.InstanceNorm2d: (lambda n: nn.InstanceNorm2d(3 * n, affine=True), (3, 5, 5)),
    nn.InstanceNorm3d: (lambda n: nn.InstanceNorm3d(3 * n, track_running_stats=True), (2, 3, 2, 2, 2)),
    nn.GroupNorm: (lambda n: nn.GroupNorm(2, 4 * n), (2, 4, 5)),
    nn.LayerNorm: (lambda n: nn.LayerNorm((3 * n, 2 * n)), (5, 3, 2)),
    nn.RMSNorm: (lambda n: nn.RMSNorm((3 * n, 2 * n)), (5, 3, 2)),
    nn.MultiheadAttention: (lambda n: nn.MultiheadAttention(4 * n, 2), (5, 2, 4)),
    nn.LSTM: (lambda n: nn.LSTM(4 * n, 3 * n, 2, proj_size=2 * n, bidirectional=True), (5, 2, 4)),
    nn.GRU: (lambda n: nn.GRU(4 * n, 3 * n, 2, bidirectional=True), (5, 2, 4)),
    nn.RNN: (lambda n: nn.RNN(4 * n, 3 * n, nonlinearity="relu", bias=False), (5, 2, 4)),
    nn.LSTMCell: (lambda n: nn.LSTMCell(4 * n, 3 * n), (2, 4)),
    nn.GRUCell: (lambda n: nn.GRUCell(4 * n, 3 * n), (2, 4)),
    nn.RNNCell: (lambda n: nn.RNNCell(4 * n, 3 * n), (2, 4)),
    nn.ChannelShuffle: (lambda n: nn.ChannelShuffle(2), (2, 4, 3, 3)),
    nn.Unflatten: (lambda n: nn.Unflatten(1, (2, n)), (5, 2)),
    nn.ConstantPad1d: (lambda n: nn.ConstantPad1d(1, 0.5), (2, 3, 5)),
    nn.ConstantPad2d: (lambda n: nn.ConstantPad2d(1, 0.5), (2, 3, 5, 5)),
    nn.ConstantPad3d: (lambda n: nn.ConstantPad3d(1, 0.5), (2, 3, 5, 5, 5)),
    nn.CircularPad1d: (lambda n: nn.CircularPad1d(1), (2, 3, 5)),
    nn.CircularPad2d: (lambda n: nn.CircularPad2d(1), (2, 3, 5, 5)),
    nn.CircularPad3d: (lambda n: nn.CircularPad3d(1), (2, 3, 5, 5, 5)),
    nn.ReflectionPad1d: (lambda n: nn.ReflectionPad1d(1), (2, 3, 5)),
    nn.ReflectionPad2d: (lambda n: nn.ReflectionPad2d(1), (2, 3, 5, 5)),
    nn.ReflectionPad3d: (lambda n: nn.ReflectionPad3d(1), (2, 3, 5, 5, 5)),
    nn.ReplicationPad1d: (lambda n: nn.ReplicationPad1d(1), (2, 3, 5)),
    nn.ReplicationPad2d: (lambda n: nn.ReplicationPad2d(1), (2, 3, 5, 5)),
    nn.ReplicationPad3d: (lambda n: nn.ReplicationPad3d(1), (2, 3, 5, 5, 5)),
}
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # torch's, of the layer
each_layer = pytest.mark.parametrize("cls", CARDS, ids=lambda cls: cls.__name__)
each_form = pytest.mark.parametrize("cls", [c for c in CARDS if CARDS[c].form is not None], ids=lambda cls: cls.__name__)


def lines_of(card: LeafCard) -> list[str]:
    """Return a card as lines of text."""
    lines = [f"form: {'none' if card.form is None else card.form.__name__.strip('_')}"]
    lines += [f"{name}: ({', '.join(shape.split())})" for name, shape in card.shapes.items()]
    lines += [f"argument {name}: {attribute}" for name, attribute in card.arguments.items()]
    return lines + ["takes a bias"] * card.takes_bias + ["shrinks written out"] * card.shrinks_written_out


def cards_text() -> str:
    """Return all cards, layers that share one together."""
    texts = []
    for card, classes in itertools.groupby(CARDS, key=CARDS.__getitem__):
        texts.append("\n    ".join([", ".join(cls.__name__ for cls in classes), *lines_of(card)]))
    return "\n\n".join(texts)


def inputs_of(cls: type[nn.Module]) -> tuple[Tensor, ...]:
    """Return example inputs of the layer of its sample, as many as it takes."""
    shape = SAMPLES[cls][1]
    if cls in (nn.Embedding, nn.EmbeddingBag):
        return (torch.arange(torch.Size(shape).numel()).view(shape) % 3,)
    number = {nn.Bilinear: 2, nn.MultiheadAttention: 3}.get(cls, 1)
    return tuple(torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in range(number))


def test_the_cards_are_those_of_the_text() -> None:
    assert cards_text() == GOLDEN.read_text(encoding="utf-8").strip()


def test_every_card_has_a_sample() -> None:
    assert set(SAMPLES) == set(CARDS)


@each_layer
def test_the_shapes_give_the_attributes_that_the_layer_was_made_with(cls: type[nn.Module]) -> None:
    layer = SAMPLES[cls][0](1)
    sizes = card_of(cls).sizes(layer)
    assert sizes == {name: getattr(layer, name) for name in sizes}
    is_said = any(name in dict(layer.named_parameters()) | dict(layer.named_buffers()) for name in card_of(cls).shapes)
    assert bool(sizes) is is_said


@each_layer
def test_a_layer_that_is_given_the_tensors_of_a_larger_one_says_its_sizes(cls: type[nn.Module]) -> None:
    if cls is nn.MultiheadAttention:
        assert card_of(cls).shrinks_written_out
        return
    small, large = SAMPLES[cls][0](1), SAMPLES[cls][0](2)
    for name, tensor in (*large.named_parameters(), *large.named_buffers()):
        setattr(small, name, tensor)
    update_sizes(small)
    if any(True for _ in large.parameters()):
        assert repr(small) == repr(large)
        assert {k: v for k, v in vars(small).items() if type(v) is int} == {
            k: v for k, v in vars(large).items() if type(v) is int
        }


@each_layer
def test_arguments_are_attributes_of_the_layer(cls: type[nn.Module]) -> None:
    layer = SAMPLES[cls][0](1)
    assert set(card_of(cls).arguments.values()) <= set(vars(layer))


@each_form
@pytest.mark.parametrize("training", [False, True])
def test_the_form_computes_what_the_layer_does(cls: type[nn.Module], training: bool) -> None:
    root, inputs = nn.Module(), inputs_of(cls)
    root.layer = SAMPLES[cls][0](1)
    root.train(training)
    graph = fx.Graph()
    graph.output(emit(root.layer, "layer", graph, tuple(graph.placeholder(f"x{i}") for i in range(len(inputs))), {}))
    graph.lint()
    torch.testing.assert_close(fx.GraphModule(root, graph)(*inputs), root.layer(*inputs))


@each_layer
def test_a_layer_that_takes_a_bias_adds_it_to_what_it_computes(cls: type[nn.Module]) -> None:
    if card_of(cls).takes_bias:
        layer, inputs = SAMPLES[cls][0](1), inputs_of(cls)
        bias = layer.bias
        assert isinstance(bias, nn.Parameter)
        layer.register_parameter("bias", None)
        without = layer(*inputs)
        layer.register_parameter("bias", bias)
        along = bias if cls is nn.Linear else bias.view(-1, *[1] * (without.dim() - 2))
        torch.testing.assert_close(layer(*inputs), without + along)


class Narrow(nn.Conv2d):
    """A convolution of a user's own."""


class Whole(nn.Module):
    """A layer of a user's own that has a number of groups in its code."""

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, 4)


def test_a_class_has_the_card_of_the_layer_that_it_derives_from() -> None:
    assert card_of(Narrow) is CARDS[nn.Conv2d]
    assert card_of(Whole) == LeafCard()
    assert [is_standard(cls) for cls in (nn.ReLU, Narrow, Whole)] == [True, True, False]
    assert [is_opaque(module) for module in (nn.ReLU(), Narrow(2, 2, 1), nn.SyncBatchNorm(2))] == [False, False, True]


def test_a_layer_of_a_users_own_whose_code_names_a_size_stays_whole() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.Conv2d(8, 2, 1))
    gm = fxprune.capture(net, (torch.ones(1, 3, 4, 4),))
    gm.add_module("1", Whole())
    fxprune.mask(gm, fxprune.plan(fxprune.analyze(gm), 0.5))
    with pytest.warns(fxprune.PruneWarning, match=r"node '_1' \(call_module 1\) runs .*group_norm.* other sizes"):
        fxprune.shrink(gm, verify=False)
    assert gm.get_parameter("0.weight").shape[0] == 8


if __name__ == "__main__":
    print(cards_text())
