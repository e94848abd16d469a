"""verify: pairs made by hand, right and wrong ones; what it says of them; and that it leaves everything as it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune.errors import VerificationError
from fxprune.verification.subject import Subject
from fxprune.verification.verify import verify
from tests.nets import ConvNet, SequenceNet, randomised

KEPT = torch.tensor([0, 2, 5, 6, 7])
WHOLE = 8

both_frontends = pytest.mark.parametrize("frontend", ["trace", "export"])


class Net(nn.Module):
    """Channels of ``conv1`` and ``norm`` can be removed; ``last`` is a norm that keeps all of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.drop = nn.Dropout(0.3)
        self.conv2 = nn.Conv2d(width, 4, 3)
        self.last = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.drop(self.norm(self.conv1(x)))
        return self.last(self.conv2(F.dropout(y.relu(), 0.2, self.training)))


CHANNELS = {"conv1.weight": 0, "conv1.bias": 0, "norm.weight": 0, "norm.bias": 0, "conv2.weight": 1}
STATISTICS = {"norm.running_mean": 0, "norm.running_var": 0}
NODES = {"conv1", "conv2d", "norm", "batch_norm", "drop", "dropout", "relu", "dropout_1"}


def image(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def narrowed(small: nn.Module, wide: nn.Module, dims: dict[str, int]) -> nn.Module:
    """Return ``small`` with the kept part of what ``wide`` holds."""
    state = wide.state_dict()
    small.load_state_dict({n: t.index_select(dims[n], KEPT) if n in dims else t for n, t in state.items()})
    return small


def masked(wide: nn.Module, dims: dict[str, int], example: Any, frontend: Any = "trace") -> Any:
    masks = {}
    for name, dim in dims.items():
        mask = torch.zeros_like(wide.get_parameter(name))
        masks[name] = mask.index_fill(dim, KEPT, 1)
    return fxprune.mask(fxprune.capture(wide, example, frontend=frontend), masks)


def pair(frontend: Any = "trace", wide: nn.Module | None = None) -> tuple[Any, Any]:
    """Return a masked graph, and the graph of a net built narrow that says what it kept."""
    torch.manual_seed(0)
    wide = wide or randomised(Net(WHOLE))
    reference = masked(wide, CHANNELS, image(), frontend)
    candidate = fxprune.capture(narrowed(Net(len(KEPT)), wide, {**CHANNELS, **STATISTICS}), image(), frontend=frontend)
    for node in candidate.graph.nodes:
        if node.name in NODES:
            node.meta["fxprune_kept"] = (None, KEPT, None, None)
    ranks = {name: t.dim() for name, t in candidate.state_dict().items()}
    candidate.meta["fxprune.kept"] = {
        name: tuple(KEPT if d == dim else None for d in range(ranks[name])) for name, dim in {**CHANNELS, **STATISTICS}.items()
    }
    return reference, candidate


@both_frontends
@pytest.mark.parametrize("gradients", [False, True])
def test_right_pair_differs_by_rounding_in_double_precision_only(frontend: Any, gradients: bool) -> None:
    # Gradients that are zero but for rounding, as that of a bias before a batch norm, are compared with a millionth of others.
    assert verify(*pair(frontend), image(), gradients=gradients) < (1e-9 if gradients else 1e-12)


def test_own_precision_is_that_of_the_models() -> None:
    assert verify(*pair(), image(), precision="own") < 1e-4
    reference, candidate = pair()
    assert verify(reference.double(), candidate.double(), image().double(), precision="own") < 1e-12
    low, other = pair()
    assert verify(low.bfloat16(), other.bfloat16(), image().bfloat16(), precision="own", modes=("eval",)) < 0.05
    low, other = pair()
    assert verify(low.bfloat16(), other.bfloat16(), image().bfloat16()) < 1e-12


@both_frontends
def test_wrong_order_of_channels_is_found_where_they_meet(frontend: Any) -> None:
    reference, candidate = pair(frontend)
    with torch.no_grad():
        candidate.get_parameter("conv2.weight").copy_(candidate.get_parameter("conv2.weight").flip(1))
    with pytest.raises(VerificationError) as caught:
        verify(reference, candidate, image())
    message = str(caught.value)
    assert message.startswith(
        "the candidate does not compute what the reference does in eval mode at batch size 2: output: relative error "
    )
    assert "(tolerance 1e-06)" in message
    expected = {
        "trace": "the first node that differs is 'conv2' (call_module conv2): relative error ",
        "export": "the first node that differs is 'conv2d_1' (call_function conv2d.default): relative error ",
    }
    assert expected[frontend] in message
    assert message.endswith("shape (2, 4, 4, 4) in the reference and (2, 4, 4, 4) in the candidate")


def test_node_is_compared_at_the_kept_positions() -> None:
    reference, candidate = pair()
    with torch.no_grad():
        candidate.get_parameter("norm.weight")[1] += 1
    with pytest.raises(VerificationError, match=r"first node that differs is 'norm' \(call_module norm\): .* shape ") as caught:
        verify(reference, candidate, image())
    assert str(caught.value).endswith("shape (2, 8, 6, 6) in the reference and (2, 5, 6, 6) in the candidate")


def test_nodes_of_which_nobody_said_what_they_kept_are_passed_over() -> None:
    reference, candidate = pair()
    for node in candidate.graph.nodes:
        node.meta.pop("fxprune_kept", None)
    with torch.no_grad():
        candidate.get_parameter("norm.weight")[1] += 1
    with pytest.raises(VerificationError, match="first node that differs is 'conv2'"):
        verify(reference, candidate, image())


def test_wrong_shape_of_a_node_is_a_difference() -> None:
    reference, candidate = pair()
    (relu,) = [node for node in candidate.graph.nodes if node.name == "relu"]
    relu.meta["fxprune_kept"] = (None, KEPT[:3], None, None)
    with torch.no_grad():
        candidate.get_parameter("last.weight").zero_()
    with pytest.raises(VerificationError, match=r"first node that differs is 'relu' .* relative error inf"):
        verify(reference, candidate, image())


def test_difference_without_a_node_to_blame_is_said_to_be_one() -> None:
    reference, candidate = pair()
    candidate.get_buffer("norm.running_var")[0] *= 3
    with pytest.raises(VerificationError, match=r"; none of the \d+ nodes that could be compared differs by that much$"):
        verify(reference, candidate, image(), modes=("train",))


@pytest.mark.parametrize("name", ["norm.running_mean", "last.running_var"])
def test_running_statistics_are_compared_after_the_run(name: str) -> None:
    reference, candidate = pair()
    candidate.get_buffer(name)[2] += 1
    with pytest.raises(
        VerificationError, match=rf"in train mode at batch size 2: buffer '{name}' after the run: relative error"
    ):
        verify(reference, candidate, image(), modes=("train",))


def test_statistics_of_which_nobody_said_what_is_left_are_passed_over() -> None:
    reference, candidate = pair()
    candidate.get_buffer("norm.running_mean")[2] += 1
    del candidate.meta["fxprune.kept"]["norm.running_mean"]
    assert verify(reference, candidate, image(), modes=("train",)) < 1e-12


@both_frontends
def test_candidate_that_cannot_run_is_an_error_that_names_the_node(frontend: Any) -> None:
    reference, candidate = pair(frontend)
    owner = candidate.get_submodule("conv2")
    owner.weight = nn.Parameter(torch.randn(4, 7, 3, 3))
    with pytest.raises(VerificationError) as caught:
        verify(reference, candidate, image())
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert "the candidate fails in eval mode at batch size 2, where the reference runs: RuntimeError: Given groups=1" in str(
        caught.value
    )
    name = {"trace": "'conv2' (call_module conv2)", "export": "'conv2d_1' (call_function conv2d.default)"}[frontend]
    assert f"it fails at node {name} on [(2, 5, 6, 6)" in str(caught.value)


def test_gradients_are_compared_if_asked_for() -> None:
    reference, candidate = pair()
    (conv2,) = [node for node in candidate.graph.nodes if node.name == "conv2"]
    with candidate.graph.inserting_before(conv2):
        detached = candidate.graph.call_method("detach", (conv2.args[0],))
    conv2.args = (detached,)
    candidate.recompile()
    assert verify(reference, candidate, image()) < 1e-12
    with pytest.raises(VerificationError, match=r"the gradient of 'conv1\.weight': relative error 1\.0e\+00"):
        verify(reference, candidate, image(), gradients=True)


class Opposite(nn.Module):
    """Gives elements whose sum is zero whatever the weight."""

    def __init__(self, detaches: bool) -> None:
        super().__init__()
        self.l, self.detaches = nn.Linear(4, 3), detaches

    def forward(self, x: Tensor) -> Tensor:
        weight = self.l.weight.detach() if self.detaches else self.l.weight
        y = F.linear(x, weight, self.l.bias)
        return torch.cat([y, -y], -1)


def test_gradients_are_of_a_projection_that_sees_every_element() -> None:
    reference, candidate, x = Opposite(False), Opposite(True), torch.randn(2, 4)
    candidate.load_state_dict(reference.state_dict())
    assert verify(reference, copy.deepcopy(reference), x, gradients=True) < 1e-12
    with pytest.raises(VerificationError, match=r"the gradient of 'l.weight'"):
        verify(reference, candidate, x, gradients=True)


def test_masks_that_remove_no_channel_scale_the_gradients() -> None:
    torch.manual_seed(0)
    wide = randomised(Net(WHOLE))
    reference = fxprune.mask(fxprune.capture(wide, image()), {"conv2.weight": torch.rand(4, 8, 3, 3).round(decimals=1)})
    candidate = fxprune.finalize(copy.deepcopy(reference))
    assert verify(reference, candidate, image(), gradients=True) < 1e-6  # the mask was baked in single precision


class Through(nn.Module):
    """Hidden features, of which some are removed, go through something random."""

    def __init__(self, width: int, through: Callable[[nn.Module, Tensor], Tensor], tail: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(6, width)
        self.through = through
        self.fc2 = nn.Linear(width, 4)
        self.tail = tail

    def forward(self, x: Tensor) -> Any:
        return self.tail(self.fc2(self.through(self, self.fc1(x))))


def stochastic_depth(module: nn.Module, x: Tensor) -> Tensor:
    return x * x.new_empty((x.shape[0], 1, 1)).bernoulli_(0.7).div_(0.7) if module.training else x


def gumbel(_: nn.Module, x: Tensor) -> Tensor:
    return x - torch.empty_like(x).exponential_().log() + torch.rand_like(x)


def attention(module: nn.Module, x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, dropout_p=0.3, scale=0.5)


RANDOM: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "dropout": lambda module, x: F.dropout(x, 0.4, module.training),
    "dropout in place": lambda module, x: F.dropout(x + 1, 0.4, module.training, inplace=True),
    "feature dropout": lambda module, x: F.dropout1d(x, 0.4, module.training),
    "alpha dropout": lambda module, x: F.alpha_dropout(x, 0.4, module.training),
    "native dropout": lambda module, x: torch.native_dropout(x, 0.4, module.training)[0],
    "rrelu": lambda module, x: F.rrelu(x, training=module.training),
    "bernoulli": lambda _, x: x * torch.bernoulli(x.sigmoid()),
    "normal": lambda _, x: x + torch.randn_like(x) + torch.empty_like(x).normal_(1, 2) + torch.normal(x, 1.0),
    "stochastic depth": stochastic_depth,
    "gumbel": gumbel,
    "attention": attention,
}

HIDDEN = {"fc1.weight": 0, "fc1.bias": 0, "fc2.weight": 1}


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 4, num_layers=2, dropout=0.5, batch_first=True)
        self.gru = nn.GRU(4, 4, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.gru(self.lstm(x)[0])[0]
        return y


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.attend(x, x, x)


DROPOUT = RANDOM["dropout"]


@both_frontends
@pytest.mark.parametrize(
    ("through", "tail"),
    [*((through, nn.Identity) for through in RANDOM.values()), (DROPOUT, Recurrent), (DROPOUT, Attention)],
    ids=[*RANDOM, "recurrent layers", "MultiheadAttention"],
)
@pytest.mark.filterwarnings("ignore::fxprune.CaptureWarning")
def test_random_operators_give_the_same_whatever_the_shapes(through: Any, tail: type[nn.Module], frontend: Any) -> None:
    torch.manual_seed(0)
    wide, x = Through(WHOLE, through, tail()), torch.randn(2, 5, 6)
    small = narrowed(Through(len(KEPT), through, copy.deepcopy(wide.tail)), wide, HIDDEN)
    reference = masked(wide, HIDDEN, x, frontend)
    candidate = fxprune.capture(small, x, frontend=frontend)
    kept = {"fc1.weight": (KEPT, None), "fc1.bias": (KEPT,), "fc2.weight": (None, KEPT)}
    candidate.meta["fxprune.kept"] = kept
    assert verify(reference, candidate, x, gradients=True) < 1e-10


@both_frontends
@pytest.mark.parametrize(
    ("build", "example"),
    [(ConvNet, torch.randn(2, 3, 6, 6)), (SequenceNet, torch.arange(10).view(2, 5))],
    ids=["ConvNet", "SequenceNet"],
)
def test_masked_and_finalized_graphs_and_models_are_the_same(build: type[nn.Module], example: Tensor, frontend: Any) -> None:
    torch.manual_seed(0)
    model = build()
    reference = fxprune.capture(model, example, frontend=frontend)
    assert verify(model, reference, example, gradients=True) < 1e-12
    names = [name for name, p in reference.named_parameters() if p.dim() > 1]
    fxprune.global_unstructured(reference, names, fxprune.L1Unstructured, amount=0.4)
    candidate = fxprune.finalize(copy.deepcopy(reference))
    assert verify(reference, candidate, example, gradients=True) < 1e-12


def test_nothing_changes() -> None:
    reference, candidate = pair()
    reference.train()
    candidate.eval()
    candidate.get_submodule("last").train()
    candidate.get_parameter("conv2.weight").grad = torch.ones(4, 5, 3, 3)
    candidate.get_parameter("conv1.weight").requires_grad_(False)
    example = image()

    def everything() -> list[Any]:
        found: list[Any] = [example.clone(), torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=True)]
        for gm in (reference, candidate):
            found += [gm.code, [m.training for m in gm.modules()], [dict(n.meta) for n in gm.graph.nodes]]
            found += [
                {n: t.clone() for n, t in gm.state_dict().items()},
                [id(t) for t in gm.state_dict(keep_vars=True).values()],
            ]
            found += [[(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in gm.parameters()]]
            found.append([set(vars(m)) for m in gm.modules()])
        return found

    before = everything()
    verify(reference, candidate, example, gradients=True)
    torch.testing.assert_close(everything()[:1], before[:1], rtol=0, atol=0)
    assert str(everything()) == str(before)
    with torch.no_grad():
        candidate.get_parameter("conv2.weight").add_(1)
    before = everything()
    with pytest.raises(VerificationError):
        verify(reference, candidate, example)
    assert str(everything()) == str(before)
    assert torch.backends.mha.get_fastpath_enabled()


def test_generators_of_the_model_keep_their_state() -> None:
    generator = torch.Generator().manual_seed(3)

    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn(x.shape, generator=generator)

    before = generator.get_state()
    assert verify(Noisy(), Noisy(), torch.randn(2, 3)) == 0.0
    assert torch.equal(generator.get_state(), before)


def test_parameters_in_double_precision_are_not_copied() -> None:
    model = nn.Linear(3, 3).double()
    subject = Subject(model, double=True)
    assert subject._parameters["weight"].data_ptr() == model.weight.data_ptr()
    renormalising = nn.Embedding(4, 3, max_norm=0.1).double()
    before = renormalising.weight.detach().clone()
    assert verify(renormalising, copy.deepcopy(renormalising), torch.arange(4)) == 0.0
    assert torch.equal(renormalising.weight, before)
