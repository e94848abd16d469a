"""Recurrent, tied, mixing and rearranging networks, BERT and GPT-2, and their groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.golden.nets_attention import Logits, Mlp


class Recurrent(nn.Module):
    """An LSTM and a linear layer on its last output."""

    def __init__(self, *, layers: int, bidirectional: bool) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 5, layers, batch_first=True, bidirectional=bidirectional)
        self.fc = nn.Linear(10 if bidirectional else 5, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x)[0][:, -1])


# The rows of an LSTM's weights are (4 gates, hidden).
LSTM_SINGLE = """
5: lstm.weight_ih_l0[0]*4 lstm.weight_hh_l0[0]*4 lstm.weight_hh_l0[1] lstm.bias_ih_l0[0]*4 lstm.bias_hh_l0[0]*4 fc.weight[1]
"""

# unsure: layers and directions have one hidden size, since one tensor of zeros, (layers * directions, batch, hidden), starts
# all of them: hidden unit i of every layer and direction is one unit here. Taken for itself, each layer and direction could be
# a group of its own; the columns of the next layer and of fc would then belong to the group that they read:
#   5: lstm.weight_ih_l0[0]*4 lstm.weight_hh_l0[0]*4 lstm.weight_hh_l0[1] lstm.bias_ih_l0[0]*4 lstm.bias_hh_l0[0]*4
#      lstm.weight_ih_l1[1]
#   5: lstm.weight_ih_l1[0]*4 lstm.weight_hh_l1[0]*4 lstm.weight_hh_l1[1] lstm.bias_ih_l1[0]*4 lstm.bias_hh_l1[0]*4 fc.weight[1]
# but no call of torch's LSTM can compute what is left.
LSTM = """
5: lstm.weight_ih_l0[0]*4 lstm.weight_hh_l0[0]*4 lstm.weight_hh_l0[1] lstm.bias_ih_l0[0]*4 lstm.bias_hh_l0[0]*4
   lstm.weight_ih_l1[0]*4 lstm.weight_ih_l1[1] lstm.weight_hh_l1[0]*4 lstm.weight_hh_l1[1]
   lstm.bias_ih_l1[0]*4 lstm.bias_hh_l1[0]*4 fc.weight[1]
"""

# unsure: as above. What reads both directions has a column for each of them.
LSTM_BIDIRECTIONAL = """
5: lstm.weight_ih_l0[0]*4 lstm.weight_hh_l0[0]*4 lstm.weight_hh_l0[1] lstm.bias_ih_l0[0]*4 lstm.bias_hh_l0[0]*4
   lstm.weight_ih_l0_reverse[0]*4 lstm.weight_hh_l0_reverse[0]*4 lstm.weight_hh_l0_reverse[1]
   lstm.bias_ih_l0_reverse[0]*4 lstm.bias_hh_l0_reverse[0]*4
   lstm.weight_ih_l1[0]*4 lstm.weight_ih_l1[1]*2 lstm.weight_hh_l1[0]*4 lstm.weight_hh_l1[1]
   lstm.bias_ih_l1[0]*4 lstm.bias_hh_l1[0]*4
   lstm.weight_ih_l1_reverse[0]*4 lstm.weight_ih_l1_reverse[1]*2 lstm.weight_hh_l1_reverse[0]*4 lstm.weight_hh_l1_reverse[1]
   lstm.bias_ih_l1_reverse[0]*4 lstm.bias_hh_l1_reverse[0]*4 fc.weight[1]*2
"""


class Mixer(nn.Module):
    """A layer of MLP-Mixer on 6 patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 10, 2, stride=2)
        self.norm1 = nn.LayerNorm(10)
        self.tokens = Mlp(6, 9)
        self.norm2 = nn.LayerNorm(10)
        self.channels = Mlp(10, 14)
        self.norm = nn.LayerNorm(10)
        self.head = nn.Linear(10, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norm2(x))
        return self.head(self.norm(x).mean(dim=1))


# Patches are places in the image: of the layers that mix them only the hidden units can go.
MIXER = """
10: patch_embed.weight[0] patch_embed.bias[0] norm1.weight[0] norm1.bias[0] norm2.weight[0] norm2.bias[0]
    channels.fc1.weight[1] channels.fc2.weight[0] channels.fc2.bias[0] norm.weight[0] norm.bias[0] head.weight[1]
9: tokens.fc1.weight[0] tokens.fc1.bias[0] tokens.fc2.weight[1]
14: channels.fc1.weight[0] channels.fc1.bias[0] channels.fc2.weight[1]
"""


class Twice(nn.Module):
    """One convolution and batch norm, called twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(2):
            x = torch.relu(self.bn(self.conv(x)))
        return self.fc(x.mean((2, 3)))


# What comes out of the first call goes into the second: channel i is row i and column i of the weight.
TWICE = """
6: stem.weight[0] stem.bias[0] conv.weight[0] conv.weight[1] conv.bias[0] bn.weight[0] bn.bias[0] fc.weight[1]
   bn.running_mean[0] bn.running_var[0]
"""


class Autoencoder(nn.Module):
    """Two layers down, and up again with the same weights transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder0 = nn.Linear(11, 7)
        self.encoder1 = nn.Linear(7, 5)
        self.bias1 = nn.Parameter(torch.randn(7))
        self.bias0 = nn.Parameter(torch.randn(11))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.encoder1(torch.tanh(self.encoder0(x))))
        x = torch.tanh(F.linear(x, self.encoder1.weight.t(), self.bias1))
        return F.linear(x, self.encoder0.weight.t(), self.bias0)


AUTOENCODER = """
7: bias1[0] encoder0.weight[0] encoder0.bias[0] encoder1.weight[1]
5: encoder1.weight[0] encoder1.bias[0]
"""


class Slice(nn.Module):
    """All channels go one way, the first three another as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.all = nn.Conv2d(8, 6, 1)
        self.first = nn.Conv2d(3, 6, 1)
        self.fc = nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        x = self.all(x) + self.first(x[:, :3])
        return self.fc(torch.relu(x).mean((2, 3)))


SLICE = """
3: conv.weight[0] conv.bias[0] all.weight[1] first.weight[1]
5: conv.weight[0] conv.bias[0] all.weight[1]
6: all.weight[0] all.bias[0] first.weight[0] first.bias[0] fc.weight[1]
"""


class Reordered(nn.Module):
    """The sum of 6 channels and the same in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.fc = nn.Linear(6, 7)


class Flip(Reordered):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.fc(torch.relu(x + x.flip(1)).mean((2, 3)))


class Roll(Reordered):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.fc(torch.relu(x + x.roll(2, 1)).mean((2, 3)))


# 0 with 5, 1 with 4, 2 with 3.
FLIP = """
3: conv.weight[0]*2 conv.bias[0]*2 fc.weight[1]*2
"""

# 0, 2, 4 and 1, 3, 5; of 3 channels that are left, the roll is by 1.
ROLL = """
2: conv.weight[0]*3 conv.bias[0]*3 fc.weight[1]*3
"""


class ChannelsLast(nn.Module):
    """Flattens height, width and channels in this order, after 3 x 4 places remain."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
        self.fc = nn.Linear(60, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.relu(self.conv(x)).permute(0, 2, 3, 1).flatten(1))


CHANNELS_LAST = """
5: conv.weight[0] conv.bias[0] fc.weight[1]*12
"""


def bert() -> nn.Module:
    """Return a BERT of one layer with 3 heads of 4 dimensions, and its classifier."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=29,
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=14,
        max_position_embeddings=17,
        initializer_range=0.3,
        use_cache=False,
    )
    config.num_labels = 7
    return Logits(BertForSequenceClassification(config))


BERT = """
12: net.bert.embeddings.word_embeddings.weight[1] net.bert.embeddings.position_embeddings.weight[1]
    net.bert.embeddings.token_type_embeddings.weight[1]
    net.bert.embeddings.LayerNorm.weight[0] net.bert.embeddings.LayerNorm.bias[0]
    net.bert.encoder.layer.0.attention.self.query.weight[1] net.bert.encoder.layer.0.attention.self.key.weight[1]
    net.bert.encoder.layer.0.attention.self.value.weight[1]
    net.bert.encoder.layer.0.attention.output.dense.weight[0] net.bert.encoder.layer.0.attention.output.dense.bias[0]
    net.bert.encoder.layer.0.attention.output.LayerNorm.weight[0] net.bert.encoder.layer.0.attention.output.LayerNorm.bias[0]
    net.bert.encoder.layer.0.intermediate.dense.weight[1]
    net.bert.encoder.layer.0.output.dense.weight[0] net.bert.encoder.layer.0.output.dense.bias[0]
    net.bert.encoder.layer.0.output.LayerNorm.weight[0] net.bert.encoder.layer.0.output.LayerNorm.bias[0]
    net.bert.pooler.dense.weight[1]
3: net.bert.encoder.layer.0.attention.self.query.weight[0]*4 net.bert.encoder.layer.0.attention.self.query.bias[0]*4
   net.bert.encoder.layer.0.attention.self.key.weight[0]*4 net.bert.encoder.layer.0.attention.self.key.bias[0]*4
   net.bert.encoder.layer.0.attention.self.value.weight[0]*4 net.bert.encoder.layer.0.attention.self.value.bias[0]*4
   net.bert.encoder.layer.0.attention.output.dense.weight[1]*4
4: net.bert.encoder.layer.0.attention.self.query.weight[0]*3 net.bert.encoder.layer.0.attention.self.query.bias[0]*3
   net.bert.encoder.layer.0.attention.self.key.weight[0]*3 net.bert.encoder.layer.0.attention.self.key.bias[0]*3
4: net.bert.encoder.layer.0.attention.self.value.weight[0]*3 net.bert.encoder.layer.0.attention.self.value.bias[0]*3
   net.bert.encoder.layer.0.attention.output.dense.weight[1]*3
14: net.bert.encoder.layer.0.intermediate.dense.weight[0] net.bert.encoder.layer.0.intermediate.dense.bias[0]
    net.bert.encoder.layer.0.output.dense.weight[1]
12: net.bert.pooler.dense.weight[0] net.bert.pooler.dense.bias[0] net.classifier.weight[1]
"""


def gpt2() -> nn.Module:
    """Return a GPT-2 of one layer with 3 heads of 4 dimensions; its head has the weight of the embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=29,
        n_embd=12,
        n_layer=1,
        n_head=3,
        n_inner=14,
        n_positions=17,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        use_cache=False,
    )
    return Logits(GPT2LMHeadModel(config))


# Its linear layers hold (in, out); c_attn gives queries, keys and values one after the other, cut apart by slices.
GPT2 = """
12: net.transformer.wte.weight[1] net.transformer.wpe.weight[1]
    net.transformer.h.0.ln_1.weight[0] net.transformer.h.0.ln_1.bias[0] net.transformer.h.0.attn.c_attn.weight[0]
    net.transformer.h.0.attn.c_proj.weight[1] net.transformer.h.0.attn.c_proj.bias[0]
    net.transformer.h.0.ln_2.weight[0] net.transformer.h.0.ln_2.bias[0] net.transformer.h.0.mlp.c_fc.weight[0]
    net.transformer.h.0.mlp.c_proj.weight[1] net.transformer.h.0.mlp.c_proj.bias[0]
    net.transformer.ln_f.weight[0] net.transformer.ln_f.bias[0]
3: net.transformer.h.0.attn.c_attn.weight[1]*12 net.transformer.h.0.attn.c_attn.bias[0]*12
   net.transformer.h.0.attn.c_proj.weight[0]*4
4: net.transformer.h.0.attn.c_attn.weight[1]*6 net.transformer.h.0.attn.c_attn.bias[0]*6
4: net.transformer.h.0.attn.c_attn.weight[1]*3 net.transformer.h.0.attn.c_attn.bias[0]*3
   net.transformer.h.0.attn.c_proj.weight[0]*3
14: net.transformer.h.0.mlp.c_fc.weight[1] net.transformer.h.0.mlp.c_fc.bias[0] net.transformer.h.0.mlp.c_proj.weight[0]
"""
