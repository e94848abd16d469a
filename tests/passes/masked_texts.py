"""What small networks read like after a plan masked them."""

from __future__ import annotations

from tests.passes import text_nets as nets
from tests.passes.texts import Text

TEXTS = (
    Text(
        "norms_over_what_can_go",
        nets.Norms,
        (2, 3),
        "trace",
        {},
        """
        def forward(self, x):
            up_weight_orig = self.up.weight_orig
            up_weight_mask0 = self.up.weight_mask0
            up_weight = up_weight_orig * up_weight_mask0
            up_bias_orig = self.up.bias_orig
            up_bias_mask0 = self.up.bias_mask0
            up_bias = up_bias_orig * up_bias_mask0
            up = torch._C._nn.linear(x, up_weight, up_bias)
            norm_weight_orig = self.norm.weight_orig
            norm_weight_mask0 = self.norm.weight_mask0
            norm_weight = norm_weight_orig * norm_weight_mask0
            norm_bias_orig = self.norm.bias_orig
            norm_bias_mask0 = self.norm.bias_mask0
            norm_bias = norm_bias_orig * norm_bias_mask0
            fxprune_keep_0 = self.fxprune_keep_0
            norm = fxprune_functional_over_kept_layer_norm_of_kept(up, weight = norm_weight, bias = norm_bias, normalized_shape = [8], eps = 1e-05, keeps = [fxprune_keep_0], keep_dims = [1])
            sigmoid = torch.sigmoid(norm)
            rms_weight_orig = self.rms.weight_orig
            rms_weight_mask0 = self.rms.weight_mask0
            rms_weight = rms_weight_orig * rms_weight_mask0
            fxprune_keep_1 = self.fxprune_keep_0
            rms = fxprune_functional_over_kept_rms_norm_of_kept(sigmoid, weight = rms_weight, normalized_shape = [8], eps = 1e-06, keeps = [fxprune_keep_1], keep_dims = [1])
            down_weight_orig = self.down.weight_orig
            down_weight_mask1 = self.down.weight_mask1
            down_weight = down_weight_orig * down_weight_mask1
            down_bias = self.down.bias
            down = torch._C._nn.linear(rms, down_weight, down_bias)
            mean = rms.mean(-1, keepdim = True)
            fxprune_keep_2 = self.fxprune_keep_0
            mean_of_kept = fxprune_functional_over_kept_mean_of_kept(mean, fxprune_keep_2)
            add = down + mean_of_kept
            return add
        """,  # noqa: E501
    ),
    Text(
        "softmax_maximum_variance_and_sum",
        nets.Pools,
        (2, 3),
        "trace",
        {},
        """
        def forward(self, x):
            up_weight_orig = self.up.weight_orig
            up_weight_mask0 = self.up.weight_mask0
            up_weight = up_weight_orig * up_weight_mask0
            up_bias_orig = self.up.bias_orig
            up_bias_mask0 = self.up.bias_mask0
            up_bias = up_bias_orig * up_bias_mask0
            up = torch._C._nn.linear(x, up_weight, up_bias)
            fxprune_keep_0 = self.fxprune_keep_0
            var = fxprune_functional_over_kept_var_of_kept(up, dims = [1], correction = 1.0, keepdim = True, root = False, keeps = [fxprune_keep_0], keep_dims = [1])
            fxprune_keep_1 = self.fxprune_keep_0
            keep_only = fxprune_functional_over_kept_keep_only(up, fxprune_keep_1, 1, -inf)
            amax = keep_only.amax(-1, keepdim = True)
            add = var + amax
            fxprune_keep_2 = self.fxprune_keep_0
            keep_only_1 = fxprune_functional_over_kept_keep_only(up, fxprune_keep_2, 1, -inf)
            softmax = keep_only_1.softmax(-1)
            down_weight_orig = self.down.weight_orig
            down_weight_mask1 = self.down.weight_mask1
            down_weight = down_weight_orig * down_weight_mask1
            down_bias = self.down.bias
            down = torch._C._nn.linear(softmax, down_weight, down_bias)
            add_1 = down + add
            sigmoid = torch.sigmoid(up)
            fxprune_keep_3 = self.fxprune_keep_0
            keep_only_2 = fxprune_functional_over_kept_keep_only(sigmoid, fxprune_keep_3, 1, 0.0)
            sum_1 = keep_only_2.sum(-1, keepdim = True)
            add_2 = add_1 + sum_1
            return add_2
        """,  # noqa: E501
    ),
    Text(
        "channels_of_a_group_norm",
        nets.Groups,
        (2, 3, 4, 4),
        "trace",
        {"choose": "inner"},
        """
        def forward(self, x):
            first_weight_orig = self.first.weight_orig
            first_weight_mask0 = self.first.weight_mask0
            first_weight = first_weight_orig * first_weight_mask0
            first_bias_orig = self.first.bias_orig
            first_bias_mask0 = self.first.bias_mask0
            first_bias = first_bias_orig * first_bias_mask0
            first = torch.conv2d(x, first_weight, first_bias, (1, 1), (0, 0), (1, 1), 1)
            norm_weight_orig = self.norm.weight_orig
            norm_weight_mask0 = self.norm.weight_mask0
            norm_weight = norm_weight_orig * norm_weight_mask0
            norm_bias_orig = self.norm.bias_orig
            norm_bias_mask0 = self.norm.bias_mask0
            norm_bias = norm_bias_orig * norm_bias_mask0
            fxprune_keep_0 = self.fxprune_keep_0
            norm = fxprune_functional_over_kept_group_norm_of_kept(first, weight = norm_weight, bias = norm_bias, num_groups = 2, eps = 1e-05, keeps = [fxprune_keep_0], keep_dims = [1])
            relu = torch.relu(norm)
            second_weight_orig = self.second.weight_orig
            second_weight_mask0 = self.second.weight_mask0
            second_weight_mask1 = self.second.weight_mask1
            mul_5 = second_weight_mask0 * second_weight_mask1
            second_weight = second_weight_orig * mul_5
            second_bias_orig = self.second.bias_orig
            second_bias_mask0 = self.second.bias_mask0
            second_bias = second_bias_orig * second_bias_mask0
            second = torch.conv2d(relu, second_weight, second_bias, (1, 1), (0, 0), (1, 1), 2)
            mean = second.mean((2, 3))
            fc_weight_orig = self.fc.weight_orig
            fc_weight_mask1 = self.fc.weight_mask1
            fc_weight = fc_weight_orig * fc_weight_mask1
            fc_bias = self.fc.bias
            fc = torch._C._nn.linear(mean, fc_weight, fc_bias)
            return fc
        """,  # noqa: E501
    ),
    Text(
        "corrections_after_torch_export",
        nets.Pools,
        (2, 3),
        "export",
        {},
        """
        def forward(self, x):
            x, = fx_pytree.tree_flatten_spec(([x], {}), self._in_spec)
            up_weight_orig = self.up.weight_orig
            up_weight_mask0 = self.up.weight_mask0
            up_weight = up_weight_orig * up_weight_mask0
            up_bias_orig = self.up.bias_orig
            up_bias_mask0 = self.up.bias_mask0
            up_bias = up_bias_orig * up_bias_mask0
            down_weight_orig = self.down.weight_orig
            down_weight_mask1 = self.down.weight_mask1
            down_weight = down_weight_orig * down_weight_mask1
            down_bias = self.down.bias
            check_shape = fxprune_functional_layers_check_shape(x, [-1, 3], 'x')
            linear = torch.ops.aten.linear.default(x, up_weight, up_bias)
            fxprune_keep_0 = self.fxprune_keep_0
            var = fxprune_functional_over_kept_var_of_kept(linear, dims = [1], correction = 1.0, keepdim = True, root = False, keeps = [fxprune_keep_0], keep_dims = [1])
            fxprune_keep_1 = self.fxprune_keep_0
            keep_only = fxprune_functional_over_kept_keep_only(linear, fxprune_keep_1, 1, -inf)
            amax = torch.ops.aten.amax.default(keep_only, [-1], True)
            add = torch.ops.aten.add.Tensor(var, amax)
            fxprune_keep_2 = self.fxprune_keep_0
            keep_only_1 = fxprune_functional_over_kept_keep_only(linear, fxprune_keep_2, 1, -inf)
            softmax = torch.ops.aten.softmax.int(keep_only_1, -1)
            linear_1 = torch.ops.aten.linear.default(softmax, down_weight, down_bias)
            add_1 = torch.ops.aten.add.Tensor(linear_1, add)
            sigmoid = torch.ops.aten.sigmoid.default(linear)
            fxprune_keep_3 = self.fxprune_keep_0
            keep_only_2 = fxprune_functional_over_kept_keep_only(sigmoid, fxprune_keep_3, 1, 0.0)
            sum_1 = torch.ops.aten.sum.dim_IntList(keep_only_2, [-1], True)
            add_2 = torch.ops.aten.add.Tensor(add_1, sum_1)
            return pytree.tree_unflatten((add_2,), self._out_spec)
        """,  # noqa: E501
    ),
)
