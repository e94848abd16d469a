"""All golden networks by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.golden import nets_attention, nets_conv, nets_misc
from tests.zoo import shim
from tests.zoo.models import randomise

Build = Callable[[], nn.Module]
Inputs = Callable[[int], tuple[Tensor, ...]]

_VOCABULARY = 29


@dataclass(frozen=True)
class Net:
    """A network and the groups of its units.

    Attributes:
        name: its key in `NETS`.
        build: makes it, in eval mode; two calls give equal weights.
        inputs: makes the arguments of a call, given the batch size; equal for equal batch sizes.
        expected: its groups, worked out by hand. ``8: conv.weight[0] fc.weight[1]*4`` is a group of 8 units, each of which
            owns one position of the first axis of ``conv.weight`` and four of the second one of ``fc.weight``. Parameters stand
            in the order of ``named_parameters()``, then buffers in that of ``named_buffers()``. Groups of one unit, or of
            buffers alone, are left out. A group may run over several lines. An axis that is not mentioned stays whole.
    """

    name: str
    build: Build
    inputs: Inputs
    expected: str


def _prepared(construct: Build) -> Build:
    def prepared() -> nn.Module:
        shim.install()  # transformers looks for torchvision
        # Forked, so that building a network leaves the caller's random stream where it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = construct()
        randomise(net, torch.Generator().manual_seed(0))
        return net.eval()

    return prepared


def _real(*shape: int) -> Inputs:
    """Return what makes one input of real numbers, of a shape without its batch."""
    return lambda batch: (torch.randn(batch, *shape, generator=torch.Generator().manual_seed(1000 + batch)),)


def _tokens(length: int) -> Inputs:
    """Return what makes one input of token numbers, none of which pads, starts or ends a text."""

    def inputs(batch: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(1000 + batch)
        return (torch.randint(3, _VOCABULARY, (batch, length), generator=generator),)

    return inputs


def _net(name: str, construct: Build, inputs: Inputs, expected: str) -> Net:
    return Net(name, _prepared(construct), inputs, expected)


def _convolutional() -> tuple[Net, ...]:
    nets = nets_conv
    return (
        _net("residual", nets.Residual, _real(3, 8, 12), nets.RESIDUAL),
        _net("densenet", nets.Dense, _real(3, 8, 12), nets.DENSE),
        _net("shuffle", lambda: nets.ShuffleNet(5), _real(3, 10, 11), nets.SHUFFLE),
        _net("shuffle_twice", lambda: nets.ShuffleNet(5, 6), _real(3, 10, 11), nets.SHUFFLE_TWICE),
        _net("shuffle_grouped", nets.GroupedShuffleNet, _real(3, 10, 11), nets.GROUPED_SHUFFLE),
        _net("squeeze_excite", nets.SqueezeExcite, _real(3, 10, 11), nets.SQUEEZE_EXCITE),
        _net("grouped_conv", nets.Grouped, _real(4, 11, 12), nets.GROUPED),
        _net("separable_conv", nets.Separable, _real(3, 10, 11), nets.SEPARABLE),
        _net("depth_multiplier", nets.DepthMultiplier, _real(4, 10, 11), nets.DEPTH_MULTIPLIER),
        _net("unet", nets.UNet, _real(3, 10, 12), nets.UNET),
        _net("pixel_shuffle", nets.PixelShuffle, _real(3, 6, 7), nets.PIXEL_SHUFFLE),
        _net("response_norm", nets.ConvNeXt, _real(3, 12, 14), nets.CONVNEXT),
    )


def _attention() -> tuple[Net, ...]:
    nets = nets_attention
    return (
        _net("vit", nets.Vit, _real(3, 8, 12), nets.VIT),
        _net("multihead", nets.Multihead, _real(6, 4), nets.MULTIHEAD),
        _net("swin", nets.Swin, _real(3, 8, 12), nets.SWIN),
        _net("einsum_attention", nets.EinsumAttention, _real(6, 8), nets.EINSUM),
        _net("linear_attention", nets.LinearAttention, _real(6, 8), nets.LINEAR_ATTENTION),
        _net("llama", lambda: nets.llama(layers=2, heads=4, tied=True), _tokens(7), nets.LLAMA),
        _net("llama_untied", lambda: nets.llama(layers=1, heads=6, tied=False), _tokens(7), nets.LLAMA_UNTIED),
        _net("bert", nets_misc.bert, _tokens(6), nets_misc.BERT),
        _net("gpt2", nets_misc.gpt2, _tokens(6), nets_misc.GPT2),
    )


def _others() -> tuple[Net, ...]:
    nets = nets_misc

    def recurrent(layers: int, bidirectional: bool) -> Build:
        return lambda: nets.Recurrent(layers=layers, bidirectional=bidirectional)

    return (
        _net("lstm_single", recurrent(1, False), _real(6, 3), nets.LSTM_SINGLE),
        _net("lstm", recurrent(2, False), _real(6, 3), nets.LSTM),
        _net("lstm_bidirectional", recurrent(2, True), _real(6, 3), nets.LSTM_BIDIRECTIONAL),
        _net("mixer", nets.Mixer, _real(3, 4, 6), nets.MIXER),
        _net("called_twice", nets.Twice, _real(3, 8, 10), nets.TWICE),
        _net("tied_autoencoder", nets.Autoencoder, _real(11), nets.AUTOENCODER),
        _net("channel_slice", nets.Slice, _real(4, 9, 10), nets.SLICE),
        _net("channel_flip", nets.Flip, _real(3, 8, 9), nets.FLIP),
        _net("channel_roll", nets.Roll, _real(3, 8, 9), nets.ROLL),
        _net("channels_last", nets.ChannelsLast, _real(3, 6, 8), nets.CHANNELS_LAST),
    )


NETS: dict[str, Net] = {net.name: net for net in (*_convolutional(), *_attention(), *_others())}
