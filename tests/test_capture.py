"""capture: inputs, outputs, names, sharing, and what it refuses."""

from __future__ import annotations

import collections
import copy
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.frontends.capture import Frontend
from fxprune.testing import check_graph
from tests.compare import assert_same, relative_error
from tests.nets import ConvNet, Result, SequenceNet, randomised

FRONTENDS = ("trace", "export")


def conv_net() -> tuple[nn.Module, Any, Any]:
    return randomised(ConvNet()), lambda b: (torch.randn(b, 3, 6, 6),), None


def sequence_net() -> tuple[nn.Module, Any, Any]:
    return randomised(SequenceNet()), lambda b: (torch.randint(0, 11, (b, 5)),), None


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("make", [conv_net, sequence_net])
@pytest.mark.parametrize("training", [True, False])
def test_graph_computes_what_the_model_does_in_both_modes_and_at_any_batch_size(
    make: Any, frontend: Any, training: bool
) -> None:
    model, inputs, _ = make()
    model.double().train(training)
    gm = fxprune.capture(model, cast(inputs(2)), frontend=frontend)
    check_graph(gm)
    assert gm.training is training
    for batch in (2, 3, 1):
        assert_same(gm, model, cast(inputs(batch)))


def cast(args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(a.double() if a.is_floating_point() else a for a in args)


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("make", [conv_net, sequence_net])
def test_tensors_are_shared_under_their_names_and_modules_are_not(make: Any, frontend: Any) -> None:
    model, inputs, _ = make()
    gm = fxprune.capture(model, inputs(2), frontend=frontend)
    assert list(gm.state_dict()) == list(model.state_dict())
    for (ours, a), (theirs, b) in zip(
        gm.named_parameters(remove_duplicate=False), model.named_parameters(remove_duplicate=False), strict=True
    ):
        assert ours == theirs
        assert a is b
    for name, buffer in model.named_buffers():
        assert gm.get_buffer(name) is buffer
    assert not {id(m) for m in gm.modules()} & {id(m) for m in model.modules()}


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_names_of_unused_tied_and_non_persistent_tensors_are_kept(frontend: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(4, 4)
            self.unused = nn.Linear(2, 2)
            self.alias = self.used
            self.register_buffer("table", torch.randn(4), persistent=False)
            self.plain = torch.randn(4)
            self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.alias(self.used(x)) * self.table + self.plain * self.frozen

    model = Net()
    gm = fxprune.capture(model, torch.randn(2, 4), frontend=frontend)
    assert list(gm.state_dict()) == list(model.state_dict())
    assert {n: p.requires_grad for n, p in gm.named_parameters()} == {n: p.requires_grad for n, p in model.named_parameters()}
    assert_same(gm, model, (torch.randn(3, 4),), tolerance=1e-6)
    gm.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_capture_leaves_the_model_and_the_random_state_alone(frontend: Any) -> None:
    model = randomised(ConvNet()).train()
    model.get_submodule("blocks.0").eval()
    before = {path: dict(vars(module)) for path, module in model.named_modules()}
    values = {name: t.clone() for name, t in model.state_dict().items()}
    random_state = torch.get_rng_state()
    fxprune.capture(model, torch.randn(2, 3, 6, 6, generator=torch.Generator()), frontend=frontend)
    assert torch.equal(torch.get_rng_state(), random_state)
    for path, module in model.named_modules():
        assert vars(module).keys() == before[path].keys()
        assert all(vars(module)[k] is v for k, v in before[path].items())
    for name, value in model.state_dict().items():
        assert torch.equal(value, values[name])
    assert "training" not in vars(nn.Module)


def test_a_failed_capture_leaves_the_model_alone() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)
            self.seen: dict[str, Any] = {}

        def forward(self, x: Tensor) -> Tensor:
            self.seen["x"] = x
            self.new_attribute = x
            return self.layer(x) if x.sum().item() > 0 else x

    model = Fails()
    with pytest.raises(fxprune.CaptureError):
        fxprune.capture(model, torch.randn(2, 2))
    assert model.seen == {}
    assert "new_attribute" not in vars(model)
    assert "training" not in vars(nn.Module)


def test_a_registry_that_the_code_deletes_is_there_again() -> None:
    class Deleting(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            result = super().forward(input)
            del self._parameters
            return result

    model = Deleting(3, 2)
    with pytest.raises(fxprune.CaptureError):
        fxprune.capture(model, torch.randn(2, 3))
    assert isinstance(model.weight, nn.Parameter)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Structured(nn.Module):
    """Takes and gives structure of every kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.kind = kind

    def forward(self, x: Tensor, *, other: Any = None, flag: bool = True, power: float = 1.0) -> Any:
        y = self.layer(x) * power
        if flag and other is not None:
            y = y + (other["a"] if isinstance(other, dict) else other[0])
        if self.kind == "tuple":
            return y, (y + 1, y * 2)
        if self.kind == "dict":
            return {"y": y, "z": [y + 1]}
        if self.kind == "namedtuple":
            return Pair(y, y + 1)
        if self.kind == "dataclass":
            return Result(y, y + 1)
        return y


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("kind", ["tensor", "tuple", "dict", "namedtuple", "dataclass"])
def test_outputs_keep_their_structure(kind: str, frontend: Any) -> None:
    if kind == "dataclass" and frontend == "export":
        torch.export.register_dataclass(Result, serialized_type_name="tests.Result")
    model = Structured(kind)
    gm = fxprune.capture(model, torch.randn(2, 3), frontend=frontend)
    x = torch.randn(4, 3)
    ours, theirs = gm(x), model(x)
    assert type(ours) is type(theirs)
    assert relative_error(ours, theirs) == 0


@pytest.mark.parametrize("frontend", FRONTENDS)
@pytest.mark.parametrize("other", ["list", "tuple", "dict"])
def test_keyword_inputs_and_nested_inputs(other: str, frontend: Any) -> None:
    def nest(t: Tensor) -> Any:
        return {"list": [t], "tuple": (t,), "dict": {"a": t}}[other]

    model = Structured("tensor")
    gm = fxprune.capture(model, torch.randn(2, 3), {"other": nest(torch.randn(2, 3))}, frontend=frontend)
    x, y = torch.randn(5, 3), torch.randn(5, 3)
    assert relative_error(gm(x, other=nest(y)), model(x, other=nest(y))) == 0


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_values_that_are_not_tensors_are_kept_or_checked(frontend: Any) -> None:
    model = Structured("tensor")
    gm = fxprune.capture(model, torch.randn(2, 3), {"flag": False, "power": 2.0, "other": None}, frontend=frontend)
    x = torch.randn(5, 3)
    assert relative_error(gm(x, flag=False, power=2.0, other=None), model(x, flag=False, power=2.0)) == 0
    with pytest.raises((AssertionError, RuntimeError), match="'flag' was False when the graph was captured"):
        gm(x, flag=True, power=2.0, other=None)
    with pytest.raises((AssertionError, RuntimeError), match="'other' was None when the graph was captured"):
        gm(x, flag=False, power=2.0, other=x)


def test_numbers_stay_inputs_of_a_traced_graph() -> None:
    model = Structured("tensor")
    gm = fxprune.capture(model, torch.randn(2, 3), {"power": 2.0}, frontend="trace")
    x = torch.randn(5, 3)
    assert relative_error(gm(x, power=-3.5), model(x, power=-3.5)) == 0


def test_variadic_forward() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, *xs: Tensor, **more: Tensor) -> Tensor:
            return self.layer(sum(xs) + sum(more.values()))

    model, x = Net(), torch.randn(2, 3)
    gm = fxprune.capture(model, (x, x), {"extra": x})
    assert relative_error(gm(x, x * 2, extra=x * 3), model(x, x * 2, extra=x * 3)) == 0


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_numbers_drawn_in_forward_stay_random(frontend: Any) -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    model = Noise()
    gm = fxprune.capture(model, torch.randn(2, 3), frontend=frontend)
    x = torch.zeros(2, 3)
    assert not torch.equal(gm(x), gm(x))


def test_numbers_drawn_independently_of_the_input_are_not_frozen() -> None:
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand(3)

    gm = fxprune.capture(Noise(), torch.randn(2, 3))
    x = torch.zeros(2, 3)
    assert not torch.equal(gm(x), gm(x))


def test_a_cache_of_the_model_does_not_enter_the_graph() -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(4, 3))
            self.cache: dict[str, Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                return x + self.table[[0, 2, 1]].sum(0)
            if "biases" not in self.cache:
                self.cache["biases"] = self.table[[0, 2, 1]].sum(0)
            return x + self.cache["biases"]

    model = Cached().eval()
    x = torch.randn(2, 3)
    with torch.no_grad():
        model(x)
    kept = model.cache["biases"]
    gm = fxprune.capture(model, x)
    assert model.cache == {"biases": kept}
    with torch.no_grad():
        model.table.mul_(2)
    model.cache.clear()
    assert relative_error(gm(x), model(x)) == 0


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_buffers_updated_by_forward_are_updated_by_the_graph(frontend: Any) -> None:
    class Counter(nn.Module):
        count: Tensor
        average: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))
            self.register_buffer("average", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.count.add_(1)
            self.average.mul_(0.9).add_(x.mean(0), alpha=0.1)
            return x * self.count + self.average

    model = Counter()
    gm = fxprune.capture(model, torch.randn(2, 3), frontend=frontend)
    assert model.count == 0
    ours, theirs = copy.deepcopy(gm), copy.deepcopy(model)
    for _ in range(3):
        x = torch.randn(2, 3)
        assert relative_error(ours(x), theirs(x)) <= 1e-6
    assert ours.get_buffer("count") == 3


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_parametrized_modules_are_traced_through(frontend: Any) -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 2))
    gm = fxprune.capture(model, torch.randn(2, 3), frontend=frontend)
    assert set(gm.state_dict()) == set(model.state_dict())
    assert_same(gm, model, (torch.randn(4, 3),), tolerance=1e-6)
    fxprune.l1_unstructured(gm, "0.parametrizations.weight.original1", 0.5)
    x = torch.randn(4, 3)
    masked = gm(x)
    fxprune.finalize(gm)
    assert relative_error(gm(x), masked) <= 1e-6


def test_composite_modules_of_torch_are_reached_into() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = randomised(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)).double().eval()
    x = torch.randn(2, 4, 8, dtype=torch.double)
    gm = fxprune.capture(model, x)
    assert_same(gm, model, (torch.randn(3, 4, 8, dtype=torch.double),))
    fxprune.l1_unstructured(gm, "layers.1.self_attn.out_proj.weight", 0.5)
    expected = copy.deepcopy(model)
    with torch.no_grad():
        mask = gm.get_buffer("layers.1.self_attn.out_proj.weight_mask")
        expected.get_parameter("layers.1.self_attn.out_proj.weight").mul_(mask)
    assert relative_error(gm(x), expected(x)) <= 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.complex64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 4, dtype=dtype), nn.Linear(4, 2, dtype=dtype))
    gm = fxprune.capture(model, torch.randn(2, 3, dtype=dtype))
    fxprune.l1_unstructured(gm, "0.weight", 0.5)
    assert gm(torch.randn(5, 3, dtype=dtype)).dtype is dtype
    assert gm.get_buffer("0.weight_mask").dtype is torch.int8


def test_a_model_on_the_meta_device() -> None:
    with torch.device("meta"):
        model = ConvNet()
    gm = fxprune.capture(model, torch.empty(2, 3, 6, 6, device="meta"))
    assert all(p.is_meta for p in gm.parameters())
    assert gm(torch.empty(4, 3, 6, 6, device="meta")).shape == (4, 5)


def test_a_graph_can_be_captured_again() -> None:
    model = randomised(ConvNet())
    x = torch.randn(2, 3, 6, 6)
    once = fxprune.capture(model, x)
    fxprune.l1_unstructured(once, "stem.weight", 0.5)
    twice = fxprune.capture(once, x)
    assert_same(twice, once, (torch.randn(3, 3, 6, 6),), tolerance=1e-6)


def test_nodes_carry_example_values() -> None:
    gm = fxprune.capture(ConvNet(), torch.randn(2, 3, 6, 6))
    shapes = {n.name: tuple(n.meta["val"].shape) for n in gm.graph.nodes if n.op == "call_module" and "val" in n.meta}
    assert shapes["stem"] == (2, 8, 6, 6)
    assert shapes["head"] == (2, 5)


class TestRefusals:
    def test_hooks_are_named(self) -> None:
        model = ConvNet()
        handle = model.get_submodule("blocks.1.conv").register_forward_hook(lambda m, i, o: o * 2)
        with pytest.raises(fxprune.HookError, match=r"blocks\.1\.conv \(Conv2d\): forward hook .*lambda") as info:
            fxprune.capture(model, torch.randn(2, 3, 6, 6))
        assert isinstance(info.value, RuntimeError)
        assert len(model.get_submodule("blocks.1.conv")._forward_hooks) == 1
        handle.remove()
        fxprune.capture(model, torch.randn(2, 3, 6, 6))

    @pytest.mark.parametrize("kind", ["full_backward", "full_backward_pre"])
    def test_every_hook_on_gradients_is_refused(self, kind: str) -> None:
        model = nn.Linear(2, 2)
        getattr(model, f"register_{kind}_hook")(lambda *args: None)
        with pytest.raises(fxprune.HookError, match=r"\(the model itself\) \(Linear\)"):
            fxprune.capture(model, torch.randn(2, 2))

    def test_a_model_that_neither_front_end_can_capture_gets_both_reasons(self) -> None:
        class Branches(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x if x.sum() > 0 else -x

        with pytest.raises(fxprune.CaptureError) as info:
            fxprune.capture(Branches(), torch.randn(2, 2))
        message = str(info.value)
        assert "Branches could not be captured" in message
        assert "trace: TraceError: the code needs the value of node 'gt' (<built-in function gt>): " in message
        assert "export: " in message

    def test_one_front_end_alone_says_that_there_is_another(self) -> None:
        class Branches(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x if x.device.type == "cpu" else -x

        with pytest.raises(fxprune.CaptureError, match='frontend="auto" tries both'):
            fxprune.capture(Branches(), torch.randn(2, 2), frontend="trace")
        assert isinstance(fxprune.capture(Branches(), torch.randn(2, 2)), fx.GraphModule)

    @pytest.mark.parametrize("frontend", ["auto", *FRONTENDS])
    def test_inputs_of_the_wrong_shape(self, frontend: Any) -> None:
        with pytest.raises(fxprune.InputError, match=r"do not fit the model: ConvNet itself fails .*\[2, 4, 6, 6\]"):
            fxprune.capture(ConvNet(), torch.randn(2, 4, 6, 6), frontend=frontend)

    @pytest.mark.parametrize(
        ("args", "kwargs", "message"),
        [
            ((), {}, "missing a required argument: 'x'"),
            ((torch.ones(1), torch.ones(1)), {}, "too many positional arguments"),
            ((torch.ones(1),), {"y": 1}, "got an unexpected keyword argument 'y'"),
        ],
    )
    def test_inputs_that_do_not_fit_the_signature(self, args: Any, kwargs: Any, message: str) -> None:
        with pytest.raises(fxprune.InputError, match=rf"ConvNet\.forward\(x: .*{message}") as info:
            fxprune.capture(ConvNet(), args, kwargs)
        assert isinstance(info.value, TypeError)

    def test_arguments_of_the_wrong_kind(self) -> None:
        with pytest.raises(fxprune.InputError, match=r"model must be a torch\.nn\.Module, not function"):
            fxprune.capture(lambda x: x, torch.ones(1))  # type: ignore[arg-type]
        with pytest.raises(fxprune.CaptureError, match="frontend must be"):
            fxprune.capture(ConvNet(), torch.ones(1), frontend="jit")  # type: ignore[arg-type]
        with pytest.raises(fxprune.InputError, match="example_kwargs must be a dict"):
            fxprune.capture(ConvNet(), torch.ones(1), [1])  # type: ignore[arg-type]

    def test_an_exported_graph_refuses_other_sizes_than_the_captured_ones(self) -> None:
        gm = fxprune.capture(ConvNet(), torch.randn(2, 3, 6, 6), frontend="export")
        with pytest.raises(RuntimeError, match="input 'x' does not have the shape that the graph was captured with"):
            gm(torch.randn(2, 3, 8, 8))

    def test_a_fixed_batch_size_is_warned_of(self) -> None:
        class FixedBatch(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x * torch.arange(int(x.shape[0])).view(-1, 1) if x.shape[0] == 2 else x.view(2, -1)

        with pytest.warns(fxprune.CaptureWarning, match="the model fixes its batch size"):
            fxprune.capture(FixedBatch(), torch.randn(2, 3), frontend="export")


def test_ordered_dict_of_modules_keeps_its_order() -> None:
    layers = collections.OrderedDict[str, nn.Module]([("b", nn.Linear(2, 2)), ("a", nn.Linear(2, 2))])
    gm = fxprune.capture(nn.Sequential(layers), torch.randn(1, 2))
    assert list(gm.state_dict()) == ["b.weight", "b.bias", "a.weight", "a.bias"]


class AsksForValues(nn.Module):
    """Looks at its input unless it is being exported, as models do that skip a mask of ones."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting() and bool((x == 0).all()):
            return self.fc(x) * 1
        return self.fc(x)


def test_a_model_that_asks_for_values_is_captured_on_the_meta_device_with_a_warning() -> None:
    with torch.device("meta"):
        model, x = AsksForValues().eval(), torch.empty(2, 4)
    with pytest.warns(fxprune.CaptureWarning, match="could not be compared with the model on the meta device"):
        gm = fxprune.capture(model, x)
    assert gm(torch.empty(5, 4, device="meta")).shape == (5, 3)


class OfPlainTensors(nn.Module):
    """A norm with two names, in code that does something else to symbolic values, so that numbers are compared."""

    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(3, 3)
        self.norm = nn.BatchNorm1d(3)
        self.again = self.norm

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(self.lin(x))
        return y + y if type(x) is Tensor else 2 * y


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("frontend", ["trace", "export"])
def test_a_module_with_two_names_keeps_its_tensors_where_numbers_are_compared(frontend: Frontend, training: bool) -> None:
    model = OfPlainTensors().train(training)
    held = dict(model.named_buffers(remove_duplicate=False)) | dict(model.named_parameters(remove_duplicate=False))
    values = {name: tensor.clone() for name, tensor in held.items()}
    gm = fxprune.capture(model, torch.randn(4, 3), frontend=frontend)
    ours = dict(gm.named_buffers(remove_duplicate=False)) | dict(gm.named_parameters(remove_duplicate=False))
    theirs = dict(model.named_buffers(remove_duplicate=False)) | dict(model.named_parameters(remove_duplicate=False))
    for name, tensor in held.items():
        assert ours[name] is tensor, name
        assert theirs[name] is tensor, name
        assert torch.equal(tensor, values[name]), name
