"""Every golden network, masked and shrunk: the same results, gradients and statistics, and the sizes that the plan says."""

from __future__ import annotations

import collections
import copy
import functools
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import fxprune
from tests.compare import relative_error, run
from tests.golden.registry import NETS
from tests.golden.whole import OF_TRANSFORMERS, whole
from tests.properties.surviving import survivors
from tests.shrinking import TOLERANCE, Pruned, assert_equal, assert_sizes, doubled

# What the libraries, and torch inside them, warn of is not ours to test.
pytestmark = pytest.mark.filterwarnings("ignore")

PLACES = [(name, f) for name in NETS for f in ("trace", "export") if not (f == "trace" and name in OF_TRANSFORMERS)]

every_net = pytest.mark.parametrize(("name", "frontend"), PLACES, ids=["-".join(place) for place in PLACES])

# Groups are the same behind both front ends, so each takes one of the further plans.
PLANS = [
    pytest.param(name, frontend, options, id=f"{name}-{frontend}-{plan}")
    for name, frontend in PLACES
    for plan, options in (("local", {}), ("global", {"scope": "global"}), ("all", {"choose": "all"}))
    if plan != ("all" if frontend == "trace" else "global") or name in OF_TRANSFORMERS
]


@functools.cache
def golden(name: str, frontend: str, **options: Any) -> Pruned:
    found = whole(name, frontend)
    plan = fxprune.plan(found.deps, 0.5, **options)
    masked = fxprune.mask(copy.deepcopy(found.gm), plan)
    return Pruned(masked, fxprune.shrink(copy.deepcopy(masked), verify=False), plan, found.deps)


@pytest.mark.parametrize(("name", "frontend", "options"), PLANS)
def test_shrunk_is_masked(name: str, frontend: str, options: dict[str, Any]) -> None:
    found, inputs = golden(name, frontend, **options), NETS[name].inputs
    assert_sizes(found)
    tolerance = 1e-5 if "llama" in name else TOLERANCE  # Llama takes its statistics in float32
    assert_equal(found, *((inputs(3),) if options else (inputs(2), inputs(3))), tolerance=tolerance)


@every_net
def test_finalize_gives_the_captured_text_back_and_bakes_the_masks(name: str, frontend: str) -> None:
    before, found = whole(name, frontend).gm, golden(name, frontend)
    gm = fxprune.finalize(copy.deepcopy(found.masked))
    if "fxprune_keep" in found.masked.code:  # without the corrections it would compute something else
        arguments = doubled(NETS[name].inputs(3))
        expected_results = run(copy.deepcopy(found.masked).eval(), arguments)
        assert relative_error(run(copy.deepcopy(gm).eval(), arguments), expected_results) <= 1e-12
    else:
        assert gm.code == before.code
    assert {key for key in gm.state_dict() if not key.startswith("fxprune_keep")} == before.state_dict().keys()
    for key, parameter in before.named_parameters():
        expected = torch.zeros_like(parameter)
        kept = [torch.from_numpy(found.plan.provenance(key, dim)) for dim in range(parameter.dim())]
        place = torch.meshgrid(*kept, indexing="ij") if kept else ...
        expected[place] = parameter[place]
        assert torch.equal(gm.get_parameter(key), expected.detach()), key


@every_net
def test_what_is_left_is_of_the_same_groups(name: str, frontend: str) -> None:
    found = golden(name, frontend)
    removed = found.plan.removed(found.deps)
    expected = collections.Counter(
        {axes: int((~removed[group.units]).sum()) for group in found.deps.groups for axes in [_axes(group)]}
    )
    groups = fxprune.analyze(found.small).groups
    assert {axes: size for axes, size in expected.items() if size > 1}.items() <= {_axes(g): g.size for g in groups}.items()


def _axes(group: Any) -> frozenset[tuple[str, int]]:
    return frozenset((member.parameter, member.dim) for member in group.members)


@every_net
def test_the_tables_numbers_are_those_of_the_smaller_graph(name: str, frontend: str) -> None:
    found = golden(name, frontend)
    assert found.plan.params_after == sum(p.numel() for p in found.small.parameters())
    counts = []
    for gm in (whole(name, frontend).gm, found.small):
        # The kernels of attention for the CPU are among what torch's counter does not count.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            copy.deepcopy(gm).eval()(*doubled(NETS[name].inputs(2)))
        counts.append(counter.get_total_flops())
    if "lstm" in name:  # torch's counter does not see into recurrent layers
        return
    assert counts == [pytest.approx(found.plan.flops_before), pytest.approx(found.plan.flops_after)]
    text = str(found.plan).splitlines()[-1]
    assert [int(n.replace(",", "")) for n in re.findall(r"(?<!\.)\b[\d,]*\d\b(?!\.?\d*%)", text)] == [
        found.plan.params_before,
        found.plan.params_after,
        *counts,
    ]


@pytest.mark.parametrize("name", ["residual", "vit", "lstm"])
def test_what_is_left_of_a_parameter_is_what_the_plan_kept(name: str) -> None:
    found, before = golden(name, "trace"), whole(name, "trace").gm
    tensors: dict[str, Tensor] = dict(before.named_parameters()) | dict(before.named_buffers())
    assert list(found.small.state_dict()) == list(before.state_dict())
    for key, value in found.small.state_dict().items():
        assert torch.equal(value, survivors(tensors[key], key, found.plan).detach()), key
