"""Networks with attention and their groups.

Heads and head dimensions live on the same rows: of H * D rows a head owns D and a head dimension H. Tokens are positions of an
image or of a graph input, and a softmax runs over them: they stay whole.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class FusedAttention(nn.Module):
    """Attention as timm writes it: one layer for queries, keys and values."""

    def __init__(self, width: int, heads: int, *, fused: bool) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_dim = width // heads
        self.fused = fused
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = ((q * self.head_dim**-0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class VitBlock(nn.Module):
    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(15, eps=1e-6)
        self.attn = FusedAttention(15, 3, fused=fused)
        self.norm2 = nn.LayerNorm(15, eps=1e-6)
        self.mlp = Mlp(15, 14)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """A vision transformer as timm's: class token, position embedding, one block with each kind of attention code."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, 15))
        self.pos_embed = nn.Parameter(torch.randn(1, 7, 15))
        self.patch_embed = nn.Conv2d(3, 15, 4, stride=4)
        self.blocks = nn.Sequential(VitBlock(fused=True), VitBlock(fused=False))
        self.norm = nn.LayerNorm(15, eps=1e-6)
        self.head = nn.Linear(15, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        return self.head(self.norm(self.blocks(x + self.pos_embed))[:, 0])


VIT = """
15: cls_token[2] pos_embed[2] patch_embed.weight[0] patch_embed.bias[0]
    blocks.0.norm1.weight[0] blocks.0.norm1.bias[0] blocks.0.attn.qkv.weight[1] blocks.0.attn.proj.weight[0]
    blocks.0.attn.proj.bias[0]
    blocks.0.norm2.weight[0] blocks.0.norm2.bias[0] blocks.0.mlp.fc1.weight[1] blocks.0.mlp.fc2.weight[0]
    blocks.0.mlp.fc2.bias[0]
    blocks.1.norm1.weight[0] blocks.1.norm1.bias[0] blocks.1.attn.qkv.weight[1] blocks.1.attn.proj.weight[0]
    blocks.1.attn.proj.bias[0]
    blocks.1.norm2.weight[0] blocks.1.norm2.bias[0] blocks.1.mlp.fc1.weight[1] blocks.1.mlp.fc2.weight[0]
    blocks.1.mlp.fc2.bias[0]
    norm.weight[0] norm.bias[0] head.weight[1]
3: blocks.0.attn.qkv.weight[0]*15 blocks.0.attn.qkv.bias[0]*15 blocks.0.attn.proj.weight[1]*5
5: blocks.0.attn.qkv.weight[0]*9 blocks.0.attn.qkv.bias[0]*9 blocks.0.attn.proj.weight[1]*3
14: blocks.0.mlp.fc1.weight[0] blocks.0.mlp.fc1.bias[0] blocks.0.mlp.fc2.weight[1]
3: blocks.1.attn.qkv.weight[0]*15 blocks.1.attn.qkv.bias[0]*15 blocks.1.attn.proj.weight[1]*5
5: blocks.1.attn.qkv.weight[0]*9 blocks.1.attn.qkv.bias[0]*9 blocks.1.attn.proj.weight[1]*3
14: blocks.1.mlp.fc1.weight[0] blocks.1.mlp.fc1.bias[0] blocks.1.mlp.fc2.weight[1]
"""


class Multihead(nn.Module):
    """A residual block with torch's own attention module."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 15)
        self.norm1 = nn.LayerNorm(15)
        self.attn = nn.MultiheadAttention(15, 3, batch_first=True)
        self.norm2 = nn.LayerNorm(15)
        self.mlp = Mlp(15, 14)
        self.head = nn.Linear(15, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        x = x + self.mlp(self.norm2(x))
        return self.head(x.mean(1))


# Self-attention views the rows of in_proj as (3, 15) and picks queries, keys and values by index: they share head dimensions.
MULTIHEAD = """
15: embed.weight[0] embed.bias[0] norm1.weight[0] norm1.bias[0]
    attn.in_proj_weight[1] attn.out_proj.weight[0] attn.out_proj.bias[0]
    norm2.weight[0] norm2.bias[0] mlp.fc1.weight[1] mlp.fc2.weight[0] mlp.fc2.bias[0] head.weight[1]
3: attn.in_proj_weight[0]*15 attn.in_proj_bias[0]*15 attn.out_proj.weight[1]*5
5: attn.in_proj_weight[0]*9 attn.in_proj_bias[0]*9 attn.out_proj.weight[1]*3
14: mlp.fc1.weight[0] mlp.fc1.bias[0] mlp.fc2.weight[1]
"""


def window_partition(x: Tensor, window: int) -> Tensor:
    """Cut (batch, height, width, channels) into (windows, window * window, channels)."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, window * window, channels)


def window_reverse(x: Tensor, window: int, height: int, width: int) -> Tensor:
    """Undo :func:`window_partition`."""
    x = x.view(-1, height // window, width // window, window, window, x.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, height, width, x.shape[-1])


class WindowAttention(nn.Module):
    """Attention inside a window, with a bias for each relative position and head."""

    relative_position_index: Tensor

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, heads))
        places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        steps = places[:, :, None] - places[:, None, :] + window - 1
        self.register_buffer("relative_position_index", steps[0] * (2 * window - 1) + steps[1])
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = q * (width // self.num_heads) ** -0.5 @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(tokens, tokens, -1)
        attn = attn + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            windows = mask.shape[0]
            attn = attn.view(batch // windows, windows, self.num_heads, tokens, tokens) + mask.unsqueeze(1).unsqueeze(0)
            attn = attn.view(-1, self.num_heads, tokens, tokens)
        x = (attn.softmax(-1) @ v).transpose(1, 2).reshape(batch, tokens, width)
        return self.proj(x)


class SwinBlock(nn.Module):
    """A block of Swin on images of 4 x 6 patches with windows of 2 x 2."""

    attn_mask: Tensor | None

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift
        self.norm1 = nn.LayerNorm(15)
        self.attn = WindowAttention(15, 3, 2)
        self.norm2 = nn.LayerNorm(15)
        self.mlp = Mlp(15, 14)
        self.register_buffer("attn_mask", self.shifted_mask() if shift else None)

    def shifted_mask(self) -> Tensor:
        """Return what keeps patches apart that the cyclic shift has put into one window; (windows, tokens, tokens)."""
        bands = (slice(0, -2), slice(-2, -self.shift), slice(-self.shift, None))
        image = torch.zeros(1, 4, 6, 1)
        for i, rows in enumerate(bands):
            for j, columns in enumerate(bands):
                image[:, rows, columns] = 3 * i + j
        windows = window_partition(image, 2).squeeze(-1)
        return (windows[:, None] != windows[:, :, None]).float() * -100.0

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        y = self.norm1(x)
        if self.shift:
            y = torch.roll(y, shifts=(-self.shift, -self.shift), dims=(1, 2))
        y = window_reverse(self.attn(window_partition(y, 2), self.attn_mask), 2, height, width)
        if self.shift:
            y = torch.roll(y, shifts=(self.shift, self.shift), dims=(1, 2))
        x = x + y
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * width, out, bias=False)
        self.norm = nn.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class Swin(nn.Module):
    """A pair of Swin blocks, the second on shifted windows, and a patch merging."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 15, 2, stride=2)
        self.blocks = nn.Sequential(SwinBlock(0), SwinBlock(1))
        self.downsample = PatchMerging(15, 22)
        self.norm = nn.LayerNorm(22)
        self.head = nn.Linear(22, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(self.blocks(self.patch_embed(x).permute(0, 2, 3, 1)))
        return self.head(self.norm(x).flatten(1, 2).mean(1))


SWIN = """
15: patch_embed.weight[0] patch_embed.bias[0]
    blocks.0.norm1.weight[0] blocks.0.norm1.bias[0] blocks.0.attn.qkv.weight[1] blocks.0.attn.proj.weight[0]
    blocks.0.attn.proj.bias[0]
    blocks.0.norm2.weight[0] blocks.0.norm2.bias[0] blocks.0.mlp.fc1.weight[1] blocks.0.mlp.fc2.weight[0]
    blocks.0.mlp.fc2.bias[0]
    blocks.1.norm1.weight[0] blocks.1.norm1.bias[0] blocks.1.attn.qkv.weight[1] blocks.1.attn.proj.weight[0]
    blocks.1.attn.proj.bias[0]
    blocks.1.norm2.weight[0] blocks.1.norm2.bias[0] blocks.1.mlp.fc1.weight[1] blocks.1.mlp.fc2.weight[0]
    blocks.1.mlp.fc2.bias[0]
    downsample.reduction.weight[1]*4 downsample.norm.weight[0]*4 downsample.norm.bias[0]*4
3: blocks.0.attn.relative_position_bias_table[1]
   blocks.0.attn.qkv.weight[0]*15 blocks.0.attn.qkv.bias[0]*15 blocks.0.attn.proj.weight[1]*5
5: blocks.0.attn.qkv.weight[0]*9 blocks.0.attn.qkv.bias[0]*9 blocks.0.attn.proj.weight[1]*3
14: blocks.0.mlp.fc1.weight[0] blocks.0.mlp.fc1.bias[0] blocks.0.mlp.fc2.weight[1]
3: blocks.1.attn.relative_position_bias_table[1]
   blocks.1.attn.qkv.weight[0]*15 blocks.1.attn.qkv.bias[0]*15 blocks.1.attn.proj.weight[1]*5
5: blocks.1.attn.qkv.weight[0]*9 blocks.1.attn.qkv.bias[0]*9 blocks.1.attn.proj.weight[1]*3
14: blocks.1.mlp.fc1.weight[0] blocks.1.mlp.fc1.bias[0] blocks.1.mlp.fc2.weight[1]
22: downsample.reduction.weight[0] norm.weight[0] norm.bias[0] head.weight[1]
"""


class EinsumAttention(nn.Module):
    """Attention of bare parameters, whose heads are dimensions of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.wq = nn.Parameter(torch.randn(10, 3, 4))
        self.wk = nn.Parameter(torch.randn(10, 3, 4))
        self.wv = nn.Parameter(torch.randn(10, 3, 5))
        self.wo = nn.Parameter(torch.randn(3, 5, 10))
        self.embed = nn.Linear(8, 10)
        self.head = nn.Linear(10, 11)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q = torch.einsum("bnc,chd->bhnd", x, self.wq)
        k = torch.einsum("bnc,chd->bhnd", x, self.wk)
        v = torch.einsum("bnc,che->bhne", x, self.wv)
        attn = (torch.einsum("bhnd,bhmd->bhnm", q, k) * 4**-0.5).softmax(-1)
        x = x + torch.einsum("bhnm,bhme,hec->bnc", attn, v, self.wo)
        return self.head(x.mean(1))


EINSUM = """
10: wq[0] wk[0] wv[0] wo[2] embed.weight[0] embed.bias[0] head.weight[1]
3: wq[1] wk[1] wv[1] wo[0]
4: wq[2] wk[2]
5: wv[2] wo[1]
"""


class LinearAttention(nn.Module):
    """Attention without softmax: queries and keys are elu(x) + 1, which is 1 where they are masked."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 10)
        self.q = nn.Linear(10, 12)
        self.k = nn.Linear(10, 12)
        self.v = nn.Linear(10, 15)
        self.proj = nn.Linear(15, 10)
        self.head = nn.Linear(10, 11)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        x = self.embed(x)
        q = F.elu(self.q(x).view(batch, tokens, 3, 4).transpose(1, 2)) + 1
        k = F.elu(self.k(x).view(batch, tokens, 3, 4).transpose(1, 2)) + 1
        v = self.v(x).view(batch, tokens, 3, 5).transpose(1, 2)
        scale = q @ k.sum(dim=2).unsqueeze(-1)
        y = (q @ (k.transpose(-2, -1) @ v)) / (scale + 1e-6)
        x = x + self.proj(y.transpose(1, 2).reshape(batch, tokens, 15))
        return self.head(x.mean(1))


LINEAR_ATTENTION = """
10: embed.weight[0] embed.bias[0] q.weight[1] k.weight[1] v.weight[1] proj.weight[0] proj.bias[0] head.weight[1]
3: q.weight[0]*4 q.bias[0]*4 k.weight[0]*4 k.bias[0]*4 v.weight[0]*5 v.bias[0]*5 proj.weight[1]*5
4: q.weight[0]*3 q.bias[0]*3 k.weight[0]*3 k.bias[0]*3
5: v.weight[0]*3 v.bias[0]*3 proj.weight[1]*3
"""


class Logits(nn.Module):
    """A model of transformers as a function from token numbers to its logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(input_ids=tokens).logits


def llama(*, layers: int, heads: int, tied: bool) -> nn.Module:
    """Return a Llama with 2 key heads, head dimension 10 and stream 12."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=29,
        hidden_size=12,
        intermediate_size=14,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=2,
        head_dim=10,
        max_position_embeddings=17,
        initializer_range=0.3,
        tie_word_embeddings=tied,
        use_cache=False,
    )
    return Logits(LlamaForCausalLM(config))


# One table of rotary frequencies serves all layers: a pair of dimensions goes in the queries and keys of both.
# A repeat is made by the expansion of the keys and owns nothing of k_proj and v_proj.
LLAMA = """
12: net.model.embed_tokens.weight[1]
    net.model.layers.0.self_attn.q_proj.weight[1] net.model.layers.0.self_attn.k_proj.weight[1]
    net.model.layers.0.self_attn.v_proj.weight[1] net.model.layers.0.self_attn.o_proj.weight[0]
    net.model.layers.0.mlp.gate_proj.weight[1] net.model.layers.0.mlp.up_proj.weight[1]
    net.model.layers.0.mlp.down_proj.weight[0]
    net.model.layers.0.input_layernorm.weight[0] net.model.layers.0.post_attention_layernorm.weight[0]
    net.model.layers.1.self_attn.q_proj.weight[1] net.model.layers.1.self_attn.k_proj.weight[1]
    net.model.layers.1.self_attn.v_proj.weight[1] net.model.layers.1.self_attn.o_proj.weight[0]
    net.model.layers.1.mlp.gate_proj.weight[1] net.model.layers.1.mlp.up_proj.weight[1]
    net.model.layers.1.mlp.down_proj.weight[0]
    net.model.layers.1.input_layernorm.weight[0] net.model.layers.1.post_attention_layernorm.weight[0] net.model.norm.weight[0]
5: net.model.layers.0.self_attn.q_proj.weight[0]*8 net.model.layers.0.self_attn.k_proj.weight[0]*4
   net.model.layers.1.self_attn.q_proj.weight[0]*8 net.model.layers.1.self_attn.k_proj.weight[0]*4
   net.model.rotary_emb.inv_freq[0]
2: net.model.layers.0.self_attn.q_proj.weight[0]*20 net.model.layers.0.self_attn.k_proj.weight[0]*10
   net.model.layers.0.self_attn.v_proj.weight[0]*10 net.model.layers.0.self_attn.o_proj.weight[1]*20
2: net.model.layers.0.self_attn.q_proj.weight[0]*20 net.model.layers.0.self_attn.o_proj.weight[1]*20
10: net.model.layers.0.self_attn.v_proj.weight[0]*2 net.model.layers.0.self_attn.o_proj.weight[1]*4
14: net.model.layers.0.mlp.gate_proj.weight[0] net.model.layers.0.mlp.up_proj.weight[0]
    net.model.layers.0.mlp.down_proj.weight[1]
2: net.model.layers.1.self_attn.q_proj.weight[0]*20 net.model.layers.1.self_attn.k_proj.weight[0]*10
   net.model.layers.1.self_attn.v_proj.weight[0]*10 net.model.layers.1.self_attn.o_proj.weight[1]*20
2: net.model.layers.1.self_attn.q_proj.weight[0]*20 net.model.layers.1.self_attn.o_proj.weight[1]*20
10: net.model.layers.1.self_attn.v_proj.weight[0]*2 net.model.layers.1.self_attn.o_proj.weight[1]*4
14: net.model.layers.1.mlp.gate_proj.weight[0] net.model.layers.1.mlp.up_proj.weight[0]
    net.model.layers.1.mlp.down_proj.weight[1]
"""

# With 6 query heads the counts of key heads (2, of 3 * 10 query rows each) and repeats (3, of 2 * 10) differ.
LLAMA_UNTIED = """
12: net.model.embed_tokens.weight[1]
    net.model.layers.0.self_attn.q_proj.weight[1] net.model.layers.0.self_attn.k_proj.weight[1]
    net.model.layers.0.self_attn.v_proj.weight[1] net.model.layers.0.self_attn.o_proj.weight[0]
    net.model.layers.0.mlp.gate_proj.weight[1] net.model.layers.0.mlp.up_proj.weight[1]
    net.model.layers.0.mlp.down_proj.weight[0]
    net.model.layers.0.input_layernorm.weight[0] net.model.layers.0.post_attention_layernorm.weight[0]
    net.model.norm.weight[0] net.lm_head.weight[1]
2: net.model.layers.0.self_attn.q_proj.weight[0]*30 net.model.layers.0.self_attn.k_proj.weight[0]*10
   net.model.layers.0.self_attn.v_proj.weight[0]*10 net.model.layers.0.self_attn.o_proj.weight[1]*30
3: net.model.layers.0.self_attn.q_proj.weight[0]*20 net.model.layers.0.self_attn.o_proj.weight[1]*20
5: net.model.layers.0.self_attn.q_proj.weight[0]*12 net.model.layers.0.self_attn.k_proj.weight[0]*4
   net.model.rotary_emb.inv_freq[0]
10: net.model.layers.0.self_attn.v_proj.weight[0]*2 net.model.layers.0.self_attn.o_proj.weight[1]*6
14: net.model.layers.0.mlp.gate_proj.weight[0] net.model.layers.0.mlp.up_proj.weight[0]
    net.model.layers.0.mlp.down_proj.weight[1]
"""
