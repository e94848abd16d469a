"""Steps of random programs on sequences, (batch, places, channels), and on vectors, (batch, channels)."""

from __future__ import annotations

from tests.properties.program import Builder


def linear(b: Builder) -> None:
    x = b.pick(2, 3)
    b.emit(f"{b.module(f'nn.Linear({x.width}, {b.width()}, bias={b.maybe(0.7)})', x)}({x})", x)


def same_linear(b: Builder) -> None:
    x = b.pick(2, 3)
    b.emit(f"{b.module(f'nn.Linear({x.width}, {x.width})', x)}({x})", x)


def bare_linear(b: Builder) -> None:
    """A weight that no module holds, used by one of several operators."""
    x, out = b.pick(2, 3), b.width()
    w = b.parameter(x.width, out)
    b.emit(b.choice((f"{x} @ {w}", f"torch.einsum('...i,io->...o', {x}, {w})", f"F.linear({x}, {w}.t())")), x)


def bilinear(b: Builder) -> None:
    x = b.pick(2)
    y = b.pick(2)
    b.emit(f"{b.module(f'nn.Bilinear({x.width}, {y.width}, 4)')}({x}, {y})", x, y)


def tied_linear(b: Builder) -> None:
    """A linear layer and another with its weight, or with its transpose."""
    x, out = b.pick(2, 3), b.width()
    one = b.module(f"nn.Linear({x.width}, {out})")
    if b.maybe():
        two = b.module(f"nn.Linear({x.width}, {out})")
        b.tie(two, one)
        b.emit(f"{one}({x}) * torch.sigmoid({two}({x}))", x)
    else:
        b.emit(f"F.linear(torch.tanh({one}({x})), {one}.weight.t())", x)


def layer_norm(b: Builder) -> None:
    x = b.pick(2, 3)
    b.emit(f"{b.module(f'nn.LayerNorm({x.width}, elementwise_affine={b.maybe(0.7)})', x)}({x})", x)


def rms_norm(b: Builder) -> None:
    x = b.pick(2, 3)
    if b.maybe():
        b.emit(f"{b.module(f'nn.RMSNorm({x.width})', x)}({x})", x)
    else:
        mean = f"{x}.pow(2).mean(-1, keepdim=True)"
        b.emit(f"{b.parameter(x.width)} * {x} * torch.rsqrt({mean} + 1e-6)", x)


def batch_norm_vector(b: Builder) -> None:
    x = b.pick(2)
    b.emit(f"{b.module(f'nn.BatchNorm1d({x.width}, affine={b.maybe(0.7)})', x)}({x})", x)


def batch_norm_sequence(b: Builder) -> None:
    x = b.pick(3)
    b.emit(f"{b.module(f'nn.BatchNorm1d({x.width})')}({x}.flatten(0, 1)).view({x}.shape)", x)


def gated_mlp(b: Builder) -> None:
    x, hidden = b.pick(2, 3), b.width()
    both = b.module(f"nn.Linear({x.width}, {2 * hidden})")
    down = b.module(f"nn.Linear({hidden}, {x.width})")
    lines = ["{0}, {1} = " + f"{both}({x}).chunk(2, -1)", "{2} = " + f"{x} + {down}(F.silu({{0}}) * {{1}})"]
    b.emit_last(lines, 3, x)


def _heads(b: Builder) -> tuple[int, int]:
    return b.choice((2, 3)), b.choice((2, 3, 4))


def attention(b: Builder) -> None:
    """Self-attention with a layer each for queries, keys and values."""
    x = b.pick(3)
    heads, size = _heads(b)
    inner, value = heads * size, b.choice((2, 3, size))
    q, k = (b.module(f"nn.Linear({x.width}, {inner})") for _ in range(2))
    v, out = b.module(f"nn.Linear({x.width}, {heads * value})"), b.module(f"nn.Linear({heads * value}, {x.width})")
    shape = f".unflatten(-1, ({heads}, {size})).transpose(1, 2)"
    lines = [
        "{0}, {1} = " + ", ".join(f"{layer}({x}){shape}" for layer in (q, k)),
        "{2} = " + f"{v}({x}).view(-1, {x.shape[1]}, {heads}, {value}).transpose(1, 2)",
        "{3} = " + _attend(b, size),
        "{4} = " + f"{out}({{3}}.transpose(1, 2).flatten(2))",
    ]
    b.emit_last(lines, 5, x)


def _attend(b: Builder, size: int) -> str:
    if b.maybe(0.4):
        return f"F.scaled_dot_product_attention({{0}}, {{1}}, {{2}}, is_causal={b.maybe(0.3)})"
    if b.maybe():
        return f"(({{0}} @ {{1}}.transpose(-2, -1)) * {size}**-0.5).softmax(-1) @ {{2}}"
    weights = f"torch.softmax(torch.einsum('bhqd,bhkd->bhqk', {{0}}, {{1}}) / {size}**0.5, dim=-1)"
    return f"torch.einsum('bhqk,bhkd->bhqd', {weights}, {{2}})"


def fused_attention(b: Builder) -> None:
    """Self-attention with one layer for queries, keys and values, as in ViT."""
    x = b.pick(3)
    heads, size = _heads(b)
    qkv = b.module(f"nn.Linear({x.width}, {3 * heads * size}, bias={b.maybe()})")
    out = b.module(f"nn.Linear({heads * size}, {x.width})")
    view = f"{qkv}({x}).reshape(-1, {x.shape[1]}, 3, {heads}, {size}).permute(2, 0, 3, 1, 4)"
    lines = [
        "{0}, {1}, {2} = " + b.choice((f"{view}.unbind(0)", f"({view}[0], {view}[1], {view}[2])")),
        "{3} = " + _attend(b, size),
        "{4} = " + f"{out}({{3}}.transpose(1, 2).reshape(-1, {x.shape[1]}, {heads * size}))",
    ]
    b.emit_last(lines, 5, x)


def grouped_query_attention(b: Builder) -> None:
    """Two query heads to each key head, the keys repeated by expand or by the operator; rotated halves as in Llama."""
    x, size = b.pick(3), b.choice((2, 4))
    q, out = b.module(f"nn.Linear({x.width}, {4 * size})"), b.module(f"nn.Linear({4 * size}, {x.width})")
    k, v = (b.module(f"nn.Linear({x.width}, {2 * size})") for _ in range(2))
    places = x.shape[1]
    angle = b.buffer(f"torch.arange({places}.0, dtype=torch.double)[:, None] * torch.tensor([0.3, 0.7]).double()[:{size // 2}]")
    rotate = "torch.cat([-{0}[..., H:], {0}[..., :H]], -1)".replace("H", str(size // 2))
    lines = [
        "{0} = " + f"{q}({x}).view(-1, {places}, 4, {size}).transpose(1, 2)",
        "{1}, {2} = " + ", ".join(f"{m}({x}).view(-1, {places}, 2, {size}).transpose(1, 2)" for m in (k, v)),
        "{3} = " + f"torch.cat([{angle}, {angle}], -1)",
        "{0} = {0} * {3}.cos() + " + rotate + " * {3}.sin()",
        "{1} = {1} * {3}.cos() + " + rotate.replace("{0}", "{1}") + " * {3}.sin()",
        *_grouped(b, places, size),
        "{5} = " + f"{out}({{4}}.transpose(1, 2).reshape(-1, {places}, {4 * size}))",
    ]
    b.emit_last(lines, 6, x)


def _grouped(b: Builder, places: int, size: int) -> list[str]:
    if b.maybe(0.3):
        return ["{4} = F.scaled_dot_product_attention({0}, {1}, {2}, enable_gqa=True)"]
    if b.maybe():
        repeated = [f"{{{i}}} = {{{i}}}.repeat_interleave(2, dim=1)" for i in (1, 2)]
    else:
        expand = f"[:, :, None].expand(-1, 2, 2, {places}, {size}).reshape(-1, 4, {places}, {size})"
        repeated = [f"{{{i}}} = {{{i}}}{expand}" for i in (1, 2)]
    return [*repeated, "{4} = F.scaled_dot_product_attention({0}, {1}, {2})"]


def multihead_attention(b: Builder) -> None:
    x = b.pick(3, where=lambda v: v.width in (4, 6, 8, 12))
    other = b.pick(3, where=lambda v: v.width == x.width) if b.maybe(0.3) else x
    layer = b.module(f"nn.MultiheadAttention({x.width}, {b.divisor(x.width)}, batch_first=True)")
    b.emit(f"{layer}({x}, {other}, {other}, need_weights=False)[0]", x, other)


def cross_attention(b: Builder) -> None:
    """Queries that are parameters, as in Perceiver."""
    x = b.pick(3)
    heads, size = 2, b.choice((2, 3))
    query = b.parameter(1, 3, heads * size)
    k, v = (b.module(f"nn.Linear({x.width}, {heads * size})") for _ in range(2))
    shape = f".unflatten(-1, ({heads}, {size})).transpose(1, 2)"
    lines = [
        "{0} = " + f"{query}.expand({x}.shape[0], -1, -1){shape}",
        "{1}, {2} = " + ", ".join(f"{layer}({x}){shape}" for layer in (k, v)),
        "{3} = F.scaled_dot_product_attention({0}, {1}, {2}).transpose(1, 2).flatten(2)",
    ]
    b.emit_last(lines, 4, x)


def token_mixing(b: Builder) -> None:
    x, hidden = b.pick(3), b.choice((3, 5))
    up, down = b.module(f"nn.Linear({x.shape[1]}, {hidden})"), b.module(f"nn.Linear({hidden}, {x.shape[1]})")
    b.emit(f"{x} + {down}(F.gelu({up}({x}.transpose(1, 2)))).transpose(1, 2)", x)


def spatial_gate(b: Builder) -> None:
    """The gating unit of gMLP."""
    x = b.pick(3, where=lambda v: v.width % 2 == 0)
    norm, mix = b.module(f"nn.LayerNorm({x.width // 2})"), b.module(f"nn.Linear({x.shape[1]}, {x.shape[1]})")
    lines = [
        "{0}, {1} = " + f"{x}.chunk(2, dim=-1)",
        "{2} = {0} * " + f"{mix}({norm}({{1}}).transpose(1, 2)).transpose(1, 2)",
    ]
    b.emit_last(lines, 3, x)


def recurrent(b: Builder) -> None:
    x, hidden = b.pick(3), b.choice((3, 4, 6))
    options = f"{b.choice((1, 1, 2))}, bidirectional={b.maybe(0.3)}, batch_first=True, bias={b.maybe(0.8)}"
    kind = b.choice(("LSTM", "GRU", "RNN"))
    b.emit(f"{b.module(f'nn.{kind}({x.width}, {hidden}, {options})', None)}({x})[0]", x)


def convolution_along(b: Builder) -> None:
    """A convolution over places, causal as in Mamba or not."""
    x = b.pick(3)
    if b.maybe():
        conv = b.module(f"nn.Conv1d({x.width}, {x.width}, 3, padding=2, groups={x.width})")
        b.emit(f"{conv}({x}.transpose(1, 2))[..., :{x.shape[1]}].transpose(1, 2)", x)
    else:
        conv = b.module(f"nn.Conv1d({x.width}, {b.width()}, 3, padding=1)")
        b.emit(f"{conv}({x}.transpose(1, 2)).transpose(1, 2)", x)


def scan(b: Builder) -> None:
    """A recurrence written out, as in state spaces."""
    x = b.pick(3)
    decay = b.parameter(x.width)
    places = x.shape[1]
    lines = ["{0} = " + f"{x}[:, 0]"]
    lines += [f"{{{k}}} = torch.sigmoid({decay}) * {{{k - 1}}} + {x}[:, {k}]" for k in range(1, places)]
    lines.append(f"{{{places}}} = torch.stack([{', '.join(f'{{{k}}}' for k in range(places))}], 1)")
    b.emit_last(lines, places + 1, x)


def position_embedding(b: Builder) -> None:
    x = b.pick(3)
    b.emit(f"{x} + {b.parameter(1, x.shape[1], x.width)}", x)


def class_token(b: Builder) -> None:
    x = b.pick(3, where=lambda v: v.shape[1] <= 9)
    token = b.parameter(1, 1, x.width)
    b.emit(f"torch.cat([{token}.expand({x}.shape[0], -1, -1), {x}], dim=1)", x)


def pool_places(b: Builder) -> None:
    x = b.pick(3)
    b.emit(b.choice((f"{x}.mean(1)", f"{x}[:, 0]", f"{x}[:, -1]", f"{x}.amax(dim=1)", f"{x}.logsumexp(1)")), x)


def flatten_places(b: Builder) -> None:
    x = b.pick(3, where=lambda v: v.shape[1] * v.width <= 48)
    b.emit(b.choice((f"{x}.flatten(1)", f"{x}.transpose(1, 2).reshape({x}.shape[0], -1)")), x)


def merge_places(b: Builder) -> None:
    """Two places become one of twice the channels."""
    x = b.pick(3, where=lambda v: v.shape[1] % 2 == 0 and v.width <= 6)
    b.emit(f"{x}.reshape({x}.shape[0], {x.shape[1] // 2}, {2 * x.width})", x)


def to_image(b: Builder) -> None:
    x = b.pick(3, where=lambda v: v.shape[1] in (4, 9, 16))
    side = round(x.shape[1] ** 0.5)
    b.emit(f"{x}.transpose(1, 2).reshape(-1, {x.width}, {side}, {side})", x)


def to_sequence_of_parts(b: Builder) -> None:
    x = b.pick(2, where=lambda v: v.width >= 6)
    parts = b.divisor(x.width)
    b.emit(f"{x}.unflatten(1, ({parts}, {x.width // parts}))", x)


def repeat_vector(b: Builder) -> None:
    x = b.pick(2)
    b.emit(b.choice((f"{x}.unsqueeze(1).repeat(1, 3, 1)", f"{x}[:, None].expand(-1, 3, -1)")) + f" + {b.parameter(3, 1)}", x)


def vector_to_image(b: Builder) -> None:
    x, y = b.pick(2), b.pick(4)
    b.emit(f"torch.cat([{y}, {x}[:, :, None, None].expand(-1, -1, {y.shape[2]}, {y.shape[3]})], 1)", x, y)
