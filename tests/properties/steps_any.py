"""Steps of random programs on values of any rank, along their channels."""

from __future__ import annotations

from tests.properties.program import Builder, UnsuitableError, Value

# What they give for zero differs; the last few make something of nothing.
_ACTIVATIONS = (
    "torch.relu({})",
    "F.gelu({})",
    "F.leaky_relu({}, 0.1)",
    "torch.tanh({})",
    "F.hardswish({})",
    "{}.abs()",
    "torch.sigmoid({})",
    "F.softplus({})",
    "{}.cos()",
    "({} * 0.5).exp()",
    "F.elu({}) + 1",
    "1 / (1 + {}.square())",
    "({}.square() + 1).log()",
    "{}.clamp(0.1, 2.0)",
)


def _each(value: Value, vector: str) -> str:
    """Return a vector over channels such that it broadcasts with a value."""
    return vector + "[:, None, None]" if len(value.shape) == 4 else vector


def activation(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    b.emit(b.choice(_ACTIVATIONS).format(x), x)


def learnt_activation(b: Builder) -> None:
    x = b.pick(2, 4)
    b.emit(f"{b.module(f'nn.PReLU({b.choice((1, x.width))})', x)}({x})", x)


def in_place(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    fresh = b.choice((f"torch.sin({x})", f"({x} * 2)", f"{x}.clone()"))  # none of which is needed for its own gradient
    y = b.pick_like(x) if b.maybe() else x
    b.emit(fresh + b.choice((".relu_()", ".mul_(0.5)", f".add_({y})", ".clamp_(min=0.1)", f".mul_(torch.sigmoid({y}))")), x, y)


def write(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    index = ":, 1:3" if x.channel == 1 else "..., 1:3"
    b.emit_lines(["{0} = " + f"{x}.clone()", f"{{0}}[{index}] = {b.choice(('0.5', '0.0'))}"], 1, x)


def add(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    y = b.pick_like(x)
    b.emit(b.choice((f"{x} + {y}", f"{x} - 0.5 * {y}", f"torch.add({x}, {y}, alpha=2)")), x, y)


def residual(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    text = f"nn.Conv2d({x.width}, {x.width}, 1)" if len(x.shape) == 4 else f"nn.Linear({x.width}, {x.width})"
    b.emit(f"{x} + {b.module(text, x)}(torch.relu({x}))", x)


def product(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    y = b.pick_like(x)
    b.emit(b.choice((f"{x} * {y}", f"{x} * torch.sigmoid({y})", f"torch.maximum({x}, {y})", f"{x} / (1 + {y}.abs())")), x, y)


def conditioned(b: Builder) -> None:
    """Scale and shift made from a vector, as in FiLM."""
    x, y = b.pick(3, 4), b.pick(2)
    layer = b.module(f"nn.Linear({y.width}, {2 * x.width})")
    index = "[:, :, None, None]" if len(x.shape) == 4 else "[:, None]"
    lines = ["{0}, {1} = " + f"{layer}({y}).chunk(2, 1)", "{2} = " + f"{x} * (1 + {{0}}{index}) + {{1}}{index}"]
    b.emit_last(lines, 3, x, y)


def concatenate(b: Builder) -> None:
    x = b.pick(2, 3, 4)

    def fits(v: Value) -> bool:
        return all(m == n for d, (m, n) in enumerate(zip(v.shape, x.shape, strict=True)) if d != x.channel) and v is not x

    y = b.pick(len(x.shape), where=fits)
    if x.width + y.width > 20:
        raise UnsuitableError("wide")
    b.emit(f"torch.cat([{x}, {y}], {x.channel})", x, y)


def concatenate_twice(b: Builder) -> None:
    x = b.pick(2, 3, 4, where=lambda v: v.width <= 8)
    other = b.choice((f"{x}", f"-{x}", f"{x}.flip({x.channel})", f"torch.relu({x})"))
    b.emit(f"torch.cat([{x}, {other}], {x.channel})", x)


def split_and_swap(b: Builder) -> None:
    x = b.pick(2, 3, 4, where=lambda v: v.width % 2 == 0 and v.width > 2)
    lines = ["{0}, {1} = " + f"{x}.chunk(2, {x.channel})", f"{{2}} = torch.cat([{{1}}, {{0}}], {x.channel})"]
    b.emit_last(lines, 3, x)


def chunk(b: Builder) -> None:
    x = b.pick(2, 3, 4, where=lambda v: v.width >= 4)
    parts = b.divisor(x.width)
    results = ", ".join(f"{{{i}}}" for i in range(parts))
    b.emit_lines([f"{results} = torch.chunk({x}, {parts}, dim={x.channel})"], parts, x)


def split_sizes(b: Builder) -> None:
    x = b.pick(2, 3, 4, where=lambda v: v.width >= 5)
    sizes = [2, x.width - 2] if b.maybe() else [x.width - 3, 3]
    b.emit_lines(["{0}, {1} = " + f"torch.split({x}, {sizes}, dim={x.channel})"], 2, x)


def split_transform_merge(b: Builder) -> None:
    """Part of the channels goes through a layer, as in ShuffleNetV2, FasterNet and Res2Net."""
    x = b.pick(2, 3, 4, where=lambda v: v.width >= 4)
    part = b.choice((2, x.width // 2))
    text = f"nn.Conv2d({part}, {part}, 3, padding=1)" if len(x.shape) == 4 else f"nn.Linear({part}, {part})"
    layer = b.module(text)
    lines = [
        "{0}, {1} = " + f"{x}.split([{part}, {x.width - part}], {x.channel})",
        "{2} = " + f"torch.cat([{layer}({{0}}), {{1}}], {x.channel})",
    ]
    b.emit_last(lines, 3, x)


def unbind(b: Builder) -> None:
    x = b.pick(2, 3, 4, where=lambda v: v.width in (4, 6, 8))
    parts, d = b.choice((2, x.width // 2)), x.channel
    shape = (parts, x.width // parts)
    view = f"{x}.unflatten({d}, {shape if b.maybe() else shape[::-1]})"
    axis = d if f"{shape})" in view else d + 1
    count = parts
    results = ", ".join(f"{{{i}}}" for i in range(count))
    b.emit_lines([f"{results} = {view}.unbind({axis})"], count, x)


def cut(b: Builder) -> None:
    x = b.pick(2, 3, 4, where=lambda v: v.width >= 4)
    index = b.choice(("::2", "1::2", "2:", ":-1", ":3", "1:-1"))
    b.emit(f"{x}[{', '.join([':'] * x.channel + [index])}]", x)


def narrow(b: Builder) -> None:
    x = b.pick(2, 3, 4, where=lambda v: v.width >= 4)
    b.emit(f"{x}.narrow({x.channel}, {b.choice((0, 1))}, {x.width - 2})", x)


def add_part(b: Builder) -> None:
    """A residual of fewer channels: into the first of them, the others filled with zeros."""
    x = b.pick(2, 3, 4)
    y = b.pick(len(x.shape), where=lambda v: v.width < x.width and v.shape[2:] == x.shape[2:] and len(v.shape) != 3)
    after = [0, 0] * (len(x.shape) - 1 - x.channel) + [0, x.width - y.width]
    b.emit(f"{x} + F.pad({y}, {tuple(after)})", x, y)


def reorder(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    b.emit(b.choice((f"{x}.flip({x.channel})", f"{x}.roll({b.choice((1, 2, -1))}, {x.channel})")), x)


def reorder_and_add(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    b.emit(f"{x} + {b.choice((f'{x}.flip({x.channel})', f'torch.roll({x}, 2, {x.channel})'))}", x)


def shift(b: Builder) -> None:
    """Channels moved by one, the first by a zero."""
    x = b.pick(2, 3, 4)
    d, rest = x.channel, [0, 0] * (len(x.shape) - 1 - x.channel)
    b.emit(f"F.pad({x}, {(*rest, 1, -1)}, value={b.choice((0.0, 0.5))}).add({x} * {d})", x)


def select_constant(b: Builder) -> None:
    x = b.pick(2, 3, 4, where=lambda v: v.width >= 3)
    index = [b.random.randrange(x.width) for _ in range(b.choice((3, x.width)))] if b.maybe(0.4) else _permutation(b, x.width)
    if b.maybe():
        b.emit(f"{x}.index_select({x.channel}, {b.buffer(f'torch.tensor({index})')})", x)
    else:
        b.emit(f"{x}[{', '.join([':'] * x.channel + [str(index)])}]", x)


def _permutation(b: Builder, size: int) -> list[int]:
    index = list(range(size))
    b.random.shuffle(index)
    return index


def shuffle(b: Builder) -> None:
    """Channel shuffle."""
    x = b.pick(2, 3, 4, where=lambda v: v.width >= 4)
    parts, d = b.divisor(x.width), x.channel
    b.emit(f"{x}.unflatten({d}, ({parts}, {x.width // parts})).transpose({d}, {d + 1}).flatten({d}, {d + 1})", x)


def by_heads(b: Builder) -> None:
    """Something done to each of several parts of the channels: a norm, a softmax, a gain for each head."""
    x = b.pick(2, 3, 4, where=lambda v: v.width >= 4)
    heads, d = b.divisor(x.width), x.channel
    size, rest = x.width // heads, "[..., None, None]" if len(x.shape) == 4 else ""
    inside = b.choice(
        (
            f"F.normalize({{0}}, dim={d + 1})",
            f"{{0}}.softmax({d + 1})",
            f"{{0}}.softmax({d})",
            f"{{0}} * {b.parameter(heads, 1)}{rest}",
            f"{{0}} + {b.parameter(size)}{rest}",
            f"{{0}} - {{0}}.mean({d}, keepdim=True)",
        )
    )
    lines = ["{0} = " + f"{x}.unflatten({d}, ({heads}, {size}))", "{1} = " + f"({inside}).flatten({d}, {d + 1})"]
    b.emit_last(lines, 2, x)


def reduce_parts(b: Builder) -> None:
    """The channels of each part combined, as in maxout."""
    x = b.pick(2, 3, 4, where=lambda v: v.width >= 6)
    parts, d = b.divisor(x.width), x.channel
    op = b.choice(("amax", "mean", "sum"))
    b.emit(f"{x}.unflatten({d}, ({parts}, {x.width // parts})).{op}({d + b.choice((0, 1))})", x)


_STATISTICS = ("mean({}, keepdim=True)", "sum({}, keepdim=True)", "amax({}, keepdim=True)", "logsumexp({}, keepdim=True)")


def channel_statistic(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    statistic = b.choice((*_STATISTICS, "max({}, keepdim=True)[0]", "std({}, keepdim=True)", "amin({}, keepdim=True)"))
    b.emit(f"{x} - 0.3 * {x}." + statistic.format(x.channel), x)


def channel_softmax(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    b.emit(b.choice(("{x}.softmax({d})", "F.log_softmax({x}, {d})", "F.normalize({x}, dim={d})")).format(x=x, d=x.channel), x)


def standardise(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    d, unbiased = x.channel, b.maybe()
    mean, var = f"{x}.mean({d}, keepdim=True)", f"{x}.var({d}, keepdim=True, unbiased={unbiased})"
    b.emit(f"({x} - {mean}) / ({var} + 1e-3).sqrt()", x)


def scale(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    b.emit(f"{x} * {_each(x, b.parameter(x.width))}" + b.choice(("", f" + {_each(x, b.parameter(x.width))}")), x)


def fixed_scale(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    buffer = b.buffer(f"torch.linspace(0.5, 1.5, {x.width}, dtype=torch.double)")
    b.emit(f"({x} - {_each(x, buffer)}) * 2", x)


def pad_channels(b: Builder) -> None:
    x = b.pick(2, 3, 4, where=lambda v: v.width <= 8)
    pad = [0, 0] * (len(x.shape) - 1 - x.channel) + [b.choice((0, 1)), 2]
    b.emit(f"F.pad({x}, {tuple(pad)}, value={b.choice((0.0, 0.4))})", x)


def repeat_channels(b: Builder) -> None:
    x = b.pick(2, 3, 4, where=lambda v: v.width <= 5)
    times = ["1"] * len(x.shape)
    times[x.channel] = "2"
    b.emit(b.choice((f"{x}.repeat({', '.join(times)})", f"{x}.repeat_interleave(2, {x.channel})")), x)


def where_mask(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    y = b.pick_like(x)
    mask = b.choice((f"{x} > 0", _each(x, b.buffer(f"torch.arange({x.width}) % 3 > 0")), f"{y} < {x}"))
    b.emit(b.choice((f"torch.where({mask}, {x}, {y})", f"{x}.masked_fill({mask}, 0.3)", f"{x} * ({mask})")), x, y)


def dropout(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    b.emit(f"{b.module('nn.Dropout(0.0)')}({x})" if b.maybe() else f"F.dropout({x}, 0.0, self.training)", x)


def stack(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    y = b.pick_like(x)
    d = b.choice((1, x.channel, x.channel + 1))
    b.emit(
        f"torch.stack([{x}, {y}], {d})" + b.choice((f".mean({d})", f".amax({d})", f".select({d}, 1) * 2", f".prod({d})")), x, y
    )


def interleave(b: Builder) -> None:
    x = b.pick(2, 3, 4, where=lambda v: v.width <= 6)
    y, d = b.pick_like(x), x.channel
    b.emit(f"torch.stack([{x}, {y}], {d + 1}).flatten({d}, {d + 1})", x, y)


def cast(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    b.emit(b.choice((f"{x}.double() * 2", f"{x}.type_as({x}) + 1", f"({x}.to(torch.float64)).contiguous() - 1")), x)


def again(b: Builder) -> None:
    """A module called a second time."""
    name, _, shape = b.choice(b.calls)
    x = b.pick(len(shape), where=lambda v: v.shape == shape)
    b.emit(f"{name}({x})", x)


def twice_in_a_row(b: Builder) -> None:
    x = b.pick(2, 3, 4)
    text = f"nn.Conv2d({x.width}, {x.width}, 1)" if len(x.shape) == 4 else f"nn.Linear({x.width}, {x.width})"
    layer = b.module(text)
    b.emit(f"{layer}(torch.tanh({layer}({x})))", x)
