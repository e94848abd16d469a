"""What small networks read like after shrink."""

from __future__ import annotations

from tests.passes import text_nets as nets
from tests.passes.texts import Text

TEXTS = (
    Text(
        "groups_of_convolutions_and_norms",
        nets.Groups,
        (2, 3, 4, 4),
        "trace",
        {"choose": "outer"},
        """
        def forward(self, x):
            first = self.first(x)
            norm = self.norm(first)
            relu = torch.relu(norm)
            second = self.second(relu)
            mean = second.mean((2, 3))
            fc = self.fc(mean)
            return fc
        """,
    ),
    Text(
        "sizes_of_attention",
        nets.Heads,
        (2, 5, 4),
        "trace",
        {"choose": "inner"},
        """
        def forward(self, x):
            getattr_1 = x.shape
            getitem = getattr_1[0]
            getitem_1 = getattr_1[1]
            qkv = self.qkv(x)
            chunk = qkv.split([6, 6, 6], dim = -1)
            getitem_3 = chunk[0]
            getitem_4 = chunk[1]
            getitem_5 = chunk[2]
            getattr_2 = getitem_3.shape
            getitem_6 = getattr_2[-1]
            floordiv = getitem_6 // 3
            reshape = getitem_3.reshape(getitem, getitem_1, 3, floordiv)
            transpose = reshape.transpose(1, 2)
            mul = getitem * 3
            floordiv_1 = getitem_6 // 3
            reshape_1 = transpose.reshape(mul, getitem_1, floordiv_1)
            floordiv_2 = getitem_6 // 3
            reshape_2 = getitem_4.reshape(getitem, getitem_1, 3, floordiv_2)
            transpose_1 = reshape_2.transpose(1, 2)
            mul_1 = getitem * 3
            floordiv_3 = getitem_6 // 3
            reshape_3 = transpose_1.reshape(mul_1, getitem_1, floordiv_3)
            floordiv_4 = getitem_6 // 3
            reshape_4 = getitem_5.reshape(getitem, getitem_1, 3, floordiv_4)
            transpose_2 = reshape_4.transpose(1, 2)
            mul_2 = getitem * 3
            floordiv_5 = getitem_6 // 3
            reshape_5 = transpose_2.reshape(mul_2, getitem_1, floordiv_5)
            transpose_3 = reshape_3.transpose(1, 2)
            matmul = reshape_1 @ transpose_3
            mul_3 = matmul * 0.5
            softmax = mul_3.softmax(-1)
            matmul_1 = softmax @ reshape_5
            floordiv_7 = getitem_6 // 3
            view = matmul_1.view(getitem, 3, getitem_1, floordiv_7)
            transpose_4 = view.transpose(1, 2)
            reshape_6 = transpose_4.reshape(getitem, getitem_1, getitem_6)
            out = self.out(reshape_6)
            return out
        """,
    ),
    Text(
        "places",
        nets.Places,
        (2, 3),
        "trace",
        {},
        """
        def forward(self, x):
            up = self.up(x)
            roll = up.roll(2, -1)
            add = up + roll
            index_table_0 = self.index_table_0
            getitem = up[(slice(None, None, None), index_table_0)]
            add_1 = add + getitem
            down = self.down(add_1)
            getitem_1 = up[(slice(None, None, None), slice(2, None, None))]
            tail = self.tail(getitem_1)
            add_2 = down + tail
            getitem_2 = up[(slice(None, None, None), slice(None, 3, 2))]
            even = self.even(getitem_2)
            add_3 = add_2 + even
            pad = torch.nn.functional.pad(up, (0, 1), mode = 'constant', value = None)
            wide = self.wide(pad)
            add_4 = add_3 + wide
            getattr_1 = up.shape
            getitem_3 = getattr_1[0]
            new_zeros = up.new_zeros(getitem_3, 2)
            add_5 = add_4 + new_zeros
            return add_5
        """,
    ),
    Text(
        "an_index_table_for_uneven_places",
        nets.Uneven,
        (2, 3),
        "trace",
        {"overrides": {"up.bias": 3, "third": 0}},
        """
        def forward(self, x):
            up = self.up(x)
            down = self.down(up)
            getitem_1 = up[(slice(None, None, None), slice(None, None, None))]
            index_table_0 = self.index_table_0
            getitem = torch.index_select(getitem_1, 1, index_table_0)
            third = self.third(getitem)
            add = down + third
            return add
        """,
    ),
    Text(
        "new_tensors",
        nets.Makers,
        (2, 5, 3),
        "trace",
        {},
        """
        def forward(self, x):
            up = self.up(x)
            token = self.token
            getattr_1 = up.shape
            getitem = getattr_1[0]
            getattr_2 = up.shape
            getitem_1 = getattr_2[2]
            expand = token.expand(getitem, -1, getitem_1)
            getattr_3 = up.shape
            getitem_2 = getattr_3[0]
            new_zeros = up.new_zeros(getitem_2, 1, 4)
            cat = torch.cat([expand, up, new_zeros], 1)
            repeat = cat.repeat(1, 1, 2)
            down = self.down(repeat)
            return down
        """,
    ),
    Text(
        "split_and_shuffle",
        nets.Parts,
        (2, 3, 4, 4),
        "trace",
        {"choose": "outer"},
        """
        def forward(self, x):
            conv = self.conv(x)
            split = conv.split([2, 2], dim = 1)
            getitem = split[0]
            getitem_1 = split[1]
            left = self.left(getitem)
            cat = torch.cat([left, getitem_1], 1)
            size = cat.size(0)
            size_1 = cat.size(2)
            size_2 = cat.size(3)
            view = cat.view(size, 2, 2, size_1, size_2)
            transpose = view.transpose(1, 2)
            size_3 = cat.size(0)
            size_4 = cat.size(2)
            size_5 = cat.size(3)
            reshape = transpose.reshape(size_3, 4, size_4, size_5)
            mean = reshape.mean((2, 3))
            fc = self.fc(mean)
            return fc
        """,
    ),
    Text(
        "split_and_shuffle_after_torch_export",
        nets.Parts,
        (2, 3, 4, 4),
        "export",
        {"choose": "outer"},
        """
        def forward(self, x):
            x, = fx_pytree.tree_flatten_spec(([x], {}), self._in_spec)
            conv_weight = self.conv.weight
            conv_bias = self.conv.bias
            left_weight = self.left.weight
            left_bias = self.left.bias
            fc_weight = self.fc.weight
            fc_bias = self.fc.bias
            check_shape = fxprune_functional_layers_check_shape(x, [-1, 3, 4, 4], 'x')
            sym_size_int_1 = torch.ops.aten.sym_size.int(x, 0)
            conv2d = torch.ops.aten.conv2d.default(x, conv_weight, conv_bias)
            split = torch.ops.aten.split_with_sizes.default(conv2d, [2, 2], 1)
            getitem = split[0]
            getitem_1 = split[1]
            conv2d_1 = torch.ops.aten.conv2d.default(getitem, left_weight, left_bias, [1, 1], [0, 0], [1, 1], 2)
            cat = torch.ops.aten.cat.default([conv2d_1, getitem_1], 1)
            view = torch.ops.aten.reshape.default(cat, [sym_size_int_1, 2, 2, 4, 4])
            transpose = torch.ops.aten.transpose.int(view, 1, 2)
            reshape = torch.ops.aten.reshape.default(transpose, [sym_size_int_1, 4, 4, 4])
            mean = torch.ops.aten.mean.dim(reshape, [2, 3])
            linear = torch.ops.aten.linear.default(mean, fc_weight, fc_bias)
            return pytree.tree_unflatten((linear,), self._out_spec)
        """,
    ),
)
