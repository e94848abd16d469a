"""Each function of fxprune.functional.layers against the torch module that it stands for, eager and compiled by TorchScript."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.node import has_side_effect
from torch.nn import functional as F

from fxprune.functional import layers as functional
from tests.kinds import loss

pytestmark = [
    # TorchScript is deprecated but is one of the formats that graphs are shipped in.
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning"),
    # Told by torch itself, of the dense module too.
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]

Function = Callable[..., Any]
both_ways = pytest.mark.parametrize("compiled", [lambda f: f, torch.jit.script], ids=["eager", "script"])


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def assert_same(function: Callable[[], Any], module: Callable[[], Any], parameters: list[Tensor]) -> None:
    """Outputs, and gradients of the parameters, are equal from equal seeds."""
    results = []
    for compute in (function, module):
        torch.manual_seed(0)
        output = compute()
        results.append((output, torch.autograd.grad(loss(output), parameters, allow_unused=True)))
    torch.testing.assert_close(*results)


@both_ways
def test_select_float_chooses_by_the_mode(compiled: Any) -> None:
    select = compiled(functional.select_float)
    assert (select(True, 0.5, 0.0), select(False, 0.5, 0.0)) == (0.5, 0.0)


@both_ways
def test_select_int_chooses_by_the_mode(compiled: Any) -> None:
    select = compiled(functional.select_int)
    assert (select(True, 3, -1), select(False, 3, -1)) == (3, -1)


@both_ways
def test_invert_is_the_opposite_mode(compiled: Any) -> None:
    invert = compiled(functional.invert)
    assert (invert(True), invert(False)) == (False, True)


@both_ways
@pytest.mark.parametrize("number", [2, 0.5])
def test_add_if_writes_under_its_condition_only(number: float, compiled: Any) -> None:
    add, total = compiled(functional.add_if_), torch.tensor(1 if isinstance(number, int) else 1.0)
    add(total, number, False)
    assert (total.item(), total._version) == (1, 0)
    add(total, number, True)
    assert total.item() == 1 + number


@both_ways
def test_check_none_lets_none_pass_and_refuses_a_tensor(compiled: Any) -> None:
    check = compiled(functional.check_none)
    check(None, "a mask was not expected")
    with pytest.raises(Exception, match="a mask was not expected"):
        check(torch.ones(1), "a mask was not expected")


@both_ways
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ([2, 3], None),
        ([-1, 3], None),
        ([-1, -1], None),
        ([2, 4], "input 'x' does not have the shape that the graph was captured with; capture the model again"),
        ([-1, 2], "input 'x' does not have the shape"),
        ([2, 3, 1], "input 'x' has the wrong number of dimensions"),
        ([6], "input 'x' has the wrong number of dimensions"),
        ([], "input 'x' has the wrong number of dimensions"),
    ],
)
def test_check_shape_refuses_another_shape_than_the_captured_one(compiled: Any, shape: list[int], message: Any) -> None:
    check = compiled(functional.check_shape)
    if message is None:
        check(torch.ones(2, 3), shape, "x")
    else:
        with pytest.raises(Exception, match=message):
            check(torch.ones(2, 3), shape, "x")


@both_ways
@pytest.mark.parametrize(
    ("check", "expected", "other"),
    [
        (functional.check_contiguous, True, False),
        (functional.check_requires_grad, False, True),
    ],
)
def test_checks_of_the_form_of_an_input(compiled: Any, check: Function, expected: Any, other: Any) -> None:
    compiled(check)(torch.ones(2, 3), expected, "not as captured")
    with pytest.raises(Exception, match="not as captured"):
        compiled(check)(torch.ones(2, 3), other, "not as captured")


def _of_single(x: Tensor) -> Tensor:
    functional.check_dtype(x, [torch.float32, torch.half], "not as captured")
    return x


@both_ways
def test_check_dtype(compiled: Any) -> None:
    check = compiled(_of_single)
    check(torch.ones(2))
    with pytest.raises(Exception, match="not as captured"):
        check(torch.ones(2, dtype=torch.double))


@both_ways
@pytest.mark.parametrize("dtype", [torch.float, torch.long, torch.bool, torch.bfloat16])
def test_check_constant(compiled: Any, dtype: torch.dtype) -> None:
    check, expected = compiled(functional.check_constant), [[1.0, 0.0], [1.0, 1.0]]
    check(torch.tensor(expected, dtype=dtype), [1.0, 0.0, 1.0, 1.0], "not as captured")
    with pytest.raises(Exception, match="not as captured"):
        check(torch.ones(2, 2, dtype=dtype), [1.0, 0.0, 1.0, 1.0], "not as captured")


def _under_autocast(x: Tensor) -> Tensor:
    functional.check_autocast(x, "not as captured")
    return x


@both_ways
def test_check_autocast_warns_in_plain_python_alone(compiled: Any) -> None:
    check = compiled(_under_autocast)
    check(torch.ones(2))
    check(torch.ones(2, device="meta"))
    plain = check is _under_autocast
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(UserWarning, match="not as") if plain else nullcontext():
        check(torch.ones(2))


@pytest.mark.parametrize(
    "function", [functional.add_if_, functional.check_none, functional.check_shape, functional.batch_norm_momentum]
)
def test_function_with_an_effect_survives_dead_code_elimination(function: Function) -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(function, (x, "", True))
    graph.output(x)
    graph.eliminate_dead_code()
    assert [node.target for node in graph.find_nodes(op="call_function", target=function)] == [function]
    assert has_side_effect(function) is function


TRANSPOSED: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "1d": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=2), (2, 2, 5)),
    "1d_unbatched": (lambda: nn.ConvTranspose1d(2, 3, 3, stride=3), (2, 5)),
    "2d": (lambda: nn.ConvTranspose2d(2, 3, (3, 2), stride=(2, 3), padding=1, dilation=(2, 1)), (2, 2, 4, 5)),
    "3d": (lambda: nn.ConvTranspose3d(2, 3, 2, stride=2), (1, 2, 3, 3, 2)),
}


@both_ways
@pytest.mark.parametrize("whole", [False, True], ids=["spatial", "whole"])
@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("case", TRANSPOSED)
def test_output_padding_gives_a_transposed_convolution_the_size_asked_for(
    case: str, extra: int, whole: bool, compiled: Any
) -> None:
    build, shape = TRANSPOSED[case]
    module, x = build(), normal(*shape)
    dims = len(module.kernel_size)
    size = [s + extra for s in module(x).shape[-dims:]]
    output_size = [*x.shape[:-dims], *size] if whole else size
    settings = (module.stride, module.padding, module.kernel_size, module.dilation)
    padding = compiled(functional.output_padding)(x, output_size, *(list(s) for s in settings))
    assert padding == [extra] * dims
    convolve = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[dims - 1]
    output = convolve(x, module.weight, module.bias, module.stride, module.padding, padding, module.groups, module.dilation)
    torch.testing.assert_close(output, module(x, output_size=size))


@both_ways
@pytest.mark.parametrize("size", [10, 13])
def test_output_padding_refuses_a_size_that_the_convolution_cannot_give(size: int, compiled: Any) -> None:
    module, x = nn.ConvTranspose1d(2, 3, 3, stride=2), normal(2, 2, 5)
    with pytest.raises(ValueError, match="requested an output size"):
        module(x, output_size=[size])
    with pytest.raises(Exception, match="requested an output size that this transposed convolution cannot give"):
        compiled(functional.output_padding)(x, [size], [2], [0], [3], [1])


@both_ways
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
def test_batch_norm_momentum_updates_the_statistics_as_the_module_does(
    momentum: float | None, training: bool, compiled: Any
) -> None:
    module = nn.BatchNorm1d(3, momentum=momentum).train(training)
    mine = copy.deepcopy(module)
    next_momentum = compiled(functional.batch_norm_momentum)
    for batch in range(3):
        x = normal(4 + batch, 3)
        weight = next_momentum(mine.num_batches_tracked, mine.momentum, training)
        output = F.batch_norm(x, mine.running_mean, mine.running_var, mine.weight, mine.bias, training, weight, mine.eps)
        torch.testing.assert_close(output, module(x))
        torch.testing.assert_close(dict(mine.named_buffers()), dict(module.named_buffers()))


@both_ways
def test_batch_norm_momentum_without_a_counter_counts_nothing(compiled: Any) -> None:
    momentum = compiled(functional.batch_norm_momentum)
    assert momentum(None, 0.25, True) == 0.25
    assert momentum(None, None, True) == 0.0


NORMS = {
    "1d": (nn.InstanceNorm1d, (2, 3, 5)),
    "1d_unbatched": (nn.InstanceNorm1d, (3, 5)),
    "2d": (nn.InstanceNorm2d, (2, 3, 4, 4)),
    "2d_unbatched": (nn.InstanceNorm2d, (3, 4, 4)),
    "3d": (nn.InstanceNorm3d, (2, 3, 2, 2, 3)),
    "3d_unbatched": (nn.InstanceNorm3d, (3, 2, 2, 3)),
}


@both_ways
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tracked", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("case", NORMS)
def test_instance_norm_is_the_module(case: str, affine: bool, tracked: bool, training: bool, compiled: Any) -> None:
    cls, shape = NORMS[case]
    module: Any = cls(3, affine=affine, track_running_stats=tracked).train(training)
    if affine:
        nn.init.normal_(module.weight)
    mine, x = copy.deepcopy(module), normal(*shape).requires_grad_()
    from_input = training or not tracked
    batched_dim = len(shape) + (1 if case.endswith("unbatched") else 0)
    norm = compiled(functional.instance_norm)

    def run() -> Any:
        return norm(x, mine.running_mean, mine.running_var, mine.weight, mine.bias, from_input, 0.1, mine.eps, batched_dim)

    for _ in range(2):
        assert_same(run, lambda: module(x), [x])
        torch.testing.assert_close(dict(mine.named_buffers()), dict(module.named_buffers()))


ATTENTION: dict[str, dict[str, Any]] = {
    "plain": {},
    "batch_first": {"batch_first": True},
    "no_bias": {"bias": False},
    "key_value_bias": {"add_bias_kv": True, "add_zero_attn": True},
    "separate": {"kdim": 6, "vdim": 4, "batch_first": True},
    "dropout": {"dropout": 0.4},
}
ATTENTION_CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_weights": {"need_weights": False},
    "weights_of_each_head": {"average_attn_weights": False},
    "padding": {"key_padding_mask": torch.tensor([[False, False, True], [False, True, True]])},
    "graded_padding": {"key_padding_mask": torch.tensor([[0.0, 1.0, -2.0], [0.5, 0.0, -1.0]])},
    "mask": {"attn_mask": torch.ones(5, 3, dtype=torch.bool).triu(1)},
    "graded_mask_of_each_head": {"attn_mask": torch.linspace(-1, 1, 60).view(4, 5, 3), "need_weights": False},
}


def attend(function: Function, m: Any, *inputs: Tensor, **options: Any) -> Any:
    """Call the function with the parameters and settings of the module ``m``."""
    separate = {name: getattr(m, name) for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")}
    return function(
        *inputs, m.embed_dim, m.num_heads, m.in_proj_weight, m.in_proj_bias, m.bias_k, m.bias_v, m.add_zero_attn,
        m.dropout, m.out_proj.weight, m.out_proj.bias, m.training, m.batch_first, **separate, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def scripted_attention() -> Function:
    return torch.jit.script(functional.multi_head_attention)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "script"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("call", ATTENTION_CALLS)
@pytest.mark.parametrize("settings", ATTENTION)
def test_multi_head_attention_is_the_module(
    settings: str, call: str, training: bool, compiled: bool, scripted_attention: Function
) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, **ATTENTION[settings]).train(training)
    shapes = (5, 2, 8), (3, 2, module.kdim), (3, 2, module.vdim)
    inputs = [normal(*shape).transpose(0, 1) if module.batch_first else normal(*shape) for shape in shapes]
    options = ATTENTION_CALLS[call]
    function = scripted_attention if compiled else functional.multi_head_attention
    assert_same(
        lambda: attend(function, module, *inputs, **options), lambda: module(*inputs, **options), list(module.parameters())
    )


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "script"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("sources", [1, 2])
def test_multi_head_attention_to_itself_is_the_module(
    sources: int, batched: bool, batch_first: bool, compiled: bool, scripted_attention: Function
) -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=batch_first)
    x = normal(4, 3, 8) if batched else normal(4, 8)
    inputs = (x, x, x) if sources == 1 else (x, x + 1, x + 1)
    length = (3 if batch_first else 4) if batched else 4
    options = {"attn_mask": torch.ones(length, length, dtype=torch.bool).triu(1), "is_causal": True, "need_weights": False}
    function = scripted_attention if compiled else functional.multi_head_attention
    assert_same(
        lambda: attend(function, module, *inputs, **options), lambda: module(*inputs, **options), list(module.parameters())
    )


RECURRENT: dict[str, dict[str, Any]] = {
    "plain": {},
    "no_bias": {"bias": False},
    "deep": {"num_layers": 2, "dropout": 0.5, "bidirectional": True},
    "batch_first": {"batch_first": True, "bidirectional": True},
}


def sequence(m: Any, batched: bool) -> Tensor:
    if not batched:
        return normal(5, 4)
    return normal(2, 5, 4) if m.batch_first else normal(5, 2, 4)


def states(m: Any, batched: bool, size: int) -> Tensor:
    layers = m.num_layers * (2 if m.bidirectional else 1)
    return normal(layers, 2, size) if batched else normal(layers, size)


def weights_of(m: Any) -> list[Tensor]:
    return [getattr(m, name) for name in m._flat_weights_names]


@both_ways
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("given", [True, False], ids=["states", "no_states"])
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("settings", [*RECURRENT, "projected"])
def test_lstm_is_the_module(settings: str, batched: bool, given: bool, training: bool, compiled: Any) -> None:
    torch.manual_seed(0)
    options = RECURRENT.get(settings, {"num_layers": 2, "proj_size": 2, "bidirectional": True})
    m = nn.LSTM(4, 3, **options).train(training)
    x = sequence(m, batched)
    hx = (states(m, batched, m.proj_size or 3), states(m, batched, 3)) if given else None
    function = compiled(functional.lstm)
    assert_same(
        lambda: function(
            x, hx, weights_of(m), m.bias, m.num_layers, float(m.dropout), m.training, m.bidirectional, m.batch_first,
        ),
        lambda: m(x, hx),
        weights_of(m),
    )  # fmt: skip


SIMPLE_RECURRENT: dict[str, Callable[..., nn.Module]] = {
    "gru": nn.GRU,
    "rnn_tanh": nn.RNN,
    "rnn_relu": lambda *args, **kwargs: nn.RNN(*args, nonlinearity="relu", **kwargs),
}


@both_ways
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("given", [True, False], ids=["states", "no_states"])
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("settings", RECURRENT)
@pytest.mark.parametrize("kind", SIMPLE_RECURRENT)
def test_gru_is_the_module_of_its_kind(
    kind: str, settings: str, batched: bool, given: bool, training: bool, compiled: Any
) -> None:
    torch.manual_seed(0)
    m: Any = SIMPLE_RECURRENT[kind](4, 3, **RECURRENT[settings]).train(training)
    x = sequence(m, batched)
    hx = states(m, batched, 3) if given else None
    function = compiled(functional.gru)
    assert_same(
        lambda: function(
            x, hx, weights_of(m), m.bias, m.num_layers, float(m.dropout), m.training, m.bidirectional, m.batch_first,
            kind,
        ),
        lambda: m(x, hx),
        weights_of(m),
    )  # fmt: skip


def cell_parameters(m: Any) -> list[Tensor]:
    return [m.weight_ih, m.weight_hh, m.bias_ih, m.bias_hh]


@both_ways
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", [True, False], ids=["states", "no_states"])
@pytest.mark.parametrize("shape", [(2,), ()], ids=["batched", "unbatched"])
def test_lstm_cell_is_the_module(shape: tuple[int, ...], given: bool, bias: bool, compiled: Any) -> None:
    torch.manual_seed(0)
    m = nn.LSTMCell(4, 3, bias=bias)
    x, hx = normal(*shape, 4), (normal(*shape, 3), normal(*shape, 3) + 1) if given else None
    function = compiled(functional.lstm_cell)
    assert_same(lambda: function(x, hx, *cell_parameters(m)), lambda: m(x, hx), list(m.parameters()))


CELLS: dict[str, Callable[[int, int, bool], nn.Module]] = {
    "gru": nn.GRUCell,
    "rnn_tanh": nn.RNNCell,
    "rnn_relu": lambda inputs, hidden, bias: nn.RNNCell(inputs, hidden, bias, nonlinearity="relu"),
}


@both_ways
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("given", [True, False], ids=["states", "no_states"])
@pytest.mark.parametrize("shape", [(2,), ()], ids=["batched", "unbatched"])
@pytest.mark.parametrize("kind", CELLS)
def test_rnn_cell_is_the_module_of_its_kind(kind: str, shape: tuple[int, ...], given: bool, bias: bool, compiled: Any) -> None:
    torch.manual_seed(0)
    m: Any = CELLS[kind](4, 3, bias)
    x, hx = normal(*shape, 4), normal(*shape, 3) if given else None
    function = compiled(functional.rnn_cell)
    assert_same(lambda: function(x, hx, *cell_parameters(m), kind), lambda: m(x, hx), list(m.parameters()))


def test_every_function_is_tested_here() -> None:
    """A new function needs a test that names it."""
    public = {n for n, f in vars(functional).items() if getattr(f, "__module__", "") == functional.__name__}
    tested = {
        "select_float", "select_int", "invert", "add_if_", "check_none", "check_shape", "check_dtype", "check_contiguous",
        "check_constant", "check_requires_grad", "check_autocast", "output_padding", "batch_norm_momentum",
        "instance_norm", "multi_head_attention", "lstm", "gru", "lstm_cell", "rnn_cell",
    }  # fmt: skip
    assert {n for n in public if not n.startswith("_")} == tested
