"""Units of a group are interchangeable, in the golden networks and in real models."""

from __future__ import annotations

import pytest
import torch
from torch.utils import _pytree as pytree

import fxprune
from tests.golden.registry import NETS, Net
from tests.zoo.exchange import exchange_error
from tests.zoo.models import build, example, randomise

pytestmark = pytest.mark.filterwarnings("ignore")

# Where units of one group are used in different ways, which no parameter shows.
ASYMMETRIC = {
    "channel_slice": "one part of the channels passes a nonlinearity that the other does not",
    "shuffle_grouped": "its conv groups overlap, each in another way",
}
# Their code computes in float32 somewhere, whatever the model's dtype. What is wrong shows in the second digit.
TOLERANCE = {"llama": 1e-6, "llama_untied": 1e-6, "gpt2": 1e-5, "t5": 1e-5}


@pytest.mark.parametrize("net", [net for name, net in NETS.items() if name not in ASYMMETRIC], ids=lambda net: net.name)
def test_units_of_golden_networks_are_interchangeable(net: Net) -> None:
    torch.manual_seed(0)
    model, inputs = net.build().double(), net.inputs(2)
    randomise(model, torch.Generator().manual_seed(0))
    inputs = pytree.tree_map(lambda leaf: leaf.double() if leaf.is_floating_point() else leaf, inputs)
    gm = fxprune.capture(model, inputs)
    error = exchange_error(gm, fxprune.analyze(gm), inputs, {})
    assert error is not None
    assert error < TOLERANCE.get(net.name, 1e-9)


@pytest.mark.parametrize("name", ["shufflenet_v2_x1_0", "swin_t", "levit_128", "gpt2", "t5"])
def test_units_of_real_models_are_interchangeable(name: str) -> None:
    args, kwargs = example(name, 2)
    gm = fxprune.capture(build(name).eval(), args, kwargs)
    deps = fxprune.analyze(gm)
    assert not deps.without_rule
    error = exchange_error(gm, deps, args, kwargs)
    assert error is not None
    assert error < TOLERANCE.get(name, 1e-9)


def test_a_missing_member_is_noticed() -> None:
    net = NETS["residual"]
    gm = fxprune.capture(net.build(), net.inputs(2))
    deps = fxprune.analyze(gm)
    object.__setattr__(deps.groups[0], "members", deps.groups[0].members[:-3])
    error = exchange_error(gm, deps, net.inputs(2), {})
    assert error is not None
    assert error > 1e-3
