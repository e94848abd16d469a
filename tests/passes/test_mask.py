"""Mask: the text of the graph it makes, where the masks take effect, and its contract as a pass."""

import dataclasses
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.fx.passes.infra.pass_manager import PassManager

import fxprune
from fxprune.errors import PruningTypeError
from fxprune.passes import Finalize, Lower, Mask, RaiseLeaves
from fxprune.testing import check_graph
from tests.kinds import KINDS, Bare, Layer, Tied, Twice, readable


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.fc = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Any:
        return self.fc(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


@dataclasses.dataclass(frozen=True)
class Golden:
    """A module, the parameters to mask, and the graph's text afterwards."""

    name: str
    module: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]
    masked: tuple[str, ...]
    text: str


GOLDEN = (
    Golden(
        "convolution_and_linear",
        ConvNet,
        (torch.ones(2, 1, 5, 5),),
        ("conv.weight", "fc.bias"),
        """
        def forward(self, x):
            conv_weight_orig = self.conv.weight_orig
            conv_weight_mask = self.conv.weight_mask
            conv_weight = conv_weight_orig * conv_weight_mask
            conv_bias = self.conv.bias
            conv = torch.conv2d(x, conv_weight, conv_bias, (1, 1), (0, 0), (1, 1), 1)
            norm = self.norm(conv)
            relu = torch.relu(norm)
            mean = relu.mean((2, 3))
            fc_weight = self.fc.weight
            fc_bias_orig = self.fc.bias_orig
            fc_bias_mask = self.fc.bias_mask
            fc_bias = fc_bias_orig * fc_bias_mask
            fc = torch._C._nn.linear(mean, fc_weight, fc_bias)
            return fc
        """,
    ),
    Golden(
        "batch_norm_follows_the_mode_and_counts_batches",
        ConvNet,
        (torch.ones(2, 1, 5, 5),),
        ("norm.weight",),
        """
        def forward(self, x):
            conv = self.conv(x)
            norm_running_mean = self.norm.running_mean
            norm_running_var = self.norm.running_var
            norm_training = self.norm.training
            norm_num_batches_tracked = self.norm.num_batches_tracked
            batch_norm_momentum = fxprune_functional_layers_batch_norm_momentum(norm_num_batches_tracked, 0.1, norm_training)
            norm_weight_orig = self.norm.weight_orig
            norm_weight_mask = self.norm.weight_mask
            norm_weight = norm_weight_orig * norm_weight_mask
            norm_bias = self.norm.bias
            norm = torch.nn.functional.batch_norm(conv, norm_running_mean, norm_running_var, weight = norm_weight, bias = norm_bias, training = norm_training, momentum = batch_norm_momentum, eps = 1e-05)
            relu = torch.relu(norm)
            mean = relu.mean((2, 3))
            fc = self.fc(mean)
            return fc
        """,  # noqa: E501
    ),
    Golden(
        "attention",
        lambda: Layer(nn.MultiheadAttention(4, 2), need_weights=False),
        (torch.ones(3, 2, 4),) * 3,
        ("layer.in_proj_weight", "layer.out_proj.weight"),
        """
        def forward(self, inputs_0, inputs_1, inputs_2):
            layer_in_proj_weight_orig = self.layer.in_proj_weight_orig
            layer_in_proj_weight_mask = self.layer.in_proj_weight_mask
            layer_in_proj_weight = layer_in_proj_weight_orig * layer_in_proj_weight_mask
            layer_in_proj_bias = self.layer.in_proj_bias
            layer_out_proj_weight_orig = self.layer.out_proj.weight_orig
            layer_out_proj_weight_mask = self.layer.out_proj.weight_mask
            layer_out_proj_weight = layer_out_proj_weight_orig * layer_out_proj_weight_mask
            layer_out_proj_bias = self.layer.out_proj.bias
            layer_training = self.layer.training
            layer = fxprune_functional_layers_multi_head_attention(inputs_0, inputs_1, inputs_2, 4, 2, layer_in_proj_weight, layer_in_proj_bias, None, None, False, 0.0, layer_out_proj_weight, layer_out_proj_bias, layer_training, False, q_proj_weight = None, k_proj_weight = None, v_proj_weight = None, need_weights = False)
            return layer
        """,  # noqa: E501
    ),
    Golden(
        "parameter_of_the_model_used_twice",
        Bare,
        (torch.ones(3, 4),),
        ("scale",),
        """
        def forward(self, x):
            scale_orig = self.scale_orig
            scale_mask = self.scale_mask
            scale = scale_orig * scale_mask
            linear = torch._C._nn.linear(x, scale)
            tanh = torch.tanh(linear)
            matmul = tanh @ scale
            shift = self.shift
            add = matmul + shift
            return add
        """,
    ),
    Golden(
        "tied_parameter_is_multiplied_once",
        Tied,
        (torch.zeros(2, 3, dtype=torch.long),),
        ("head.weight",),
        """
        def forward(self, tokens):
            embed_weight_orig = self.embed.weight_orig
            embed_weight_mask = self.embed.weight_mask
            embed_weight = embed_weight_orig * embed_weight_mask
            embed = torch.nn.functional.embedding(tokens, embed_weight, padding_idx = None, max_norm = None, norm_type = 2.0, scale_grad_by_freq = False, sparse = False)
            tanh = torch.tanh(embed)
            head_bias = self.head.bias
            head = torch._C._nn.linear(tanh, embed_weight, head_bias)
            return head
        """,  # noqa: E501
    ),
    Golden(
        "module_called_twice_is_multiplied_once",
        Twice,
        (torch.ones(3, 4),),
        ("layer.weight",),
        """
        def forward(self, x):
            layer_weight_orig = self.layer.weight_orig
            layer_weight_mask = self.layer.weight_mask
            layer_weight = layer_weight_orig * layer_weight_mask
            layer_bias = self.layer.bias
            layer = torch._C._nn.linear(x, layer_weight, layer_bias)
            tanh = torch.tanh(layer)
            layer_bias_1 = self.layer.bias
            layer_1 = torch._C._nn.linear(tanh, layer_weight, layer_bias_1)
            return layer_1
        """,
    ),
    Golden(
        "recurrent_layer_keeps_the_order_of_its_weights",
        lambda: Layer(nn.GRU(2, 3)),
        (torch.ones(4, 2, 2),),
        ("layer.weight_hh_l0",),
        """
        def forward(self, inputs_0):
            layer_weight_ih_l0 = self.layer.weight_ih_l0
            layer_weight_hh_l0_orig = self.layer.weight_hh_l0_orig
            layer_weight_hh_l0_mask = self.layer.weight_hh_l0_mask
            layer_weight_hh_l0 = layer_weight_hh_l0_orig * layer_weight_hh_l0_mask
            layer_bias_ih_l0 = self.layer.bias_ih_l0
            layer_bias_hh_l0 = self.layer.bias_hh_l0
            layer_training = self.layer.training
            layer = fxprune_functional_layers_gru(inputs_0, None, [layer_weight_ih_l0, layer_weight_hh_l0, layer_bias_ih_l0, layer_bias_hh_l0], True, 1, 0.0, layer_training, False, False, 'gru')
            return layer
        """,  # noqa: E501
    ),
)


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: golden.name)
def test_masked_graph_reads(golden: Golden) -> None:
    gm = fxprune.capture(golden.module(), golden.inputs, frontend="trace")
    for name in golden.masked:
        fxprune.l1_unstructured(gm, name, 0.5)
    assert readable(gm) == textwrap.dedent(golden.text).strip()
    check_graph(gm)


def test_masked_graph_of_the_export_front_end_reads() -> None:
    gm = fxprune.capture(Twice(), (torch.ones(3, 4),), frontend="export")
    fxprune.l1_unstructured(gm, "layer.weight", 0.5)
    expected = """
        def forward(self, x):
            x, = fx_pytree.tree_flatten_spec(([x], {}), self._in_spec)
            layer_weight_orig = self.layer.weight_orig
            layer_weight_mask = self.layer.weight_mask
            layer_weight = layer_weight_orig * layer_weight_mask
            layer_bias = self.layer.bias
            check_shape = fxprune_functional_layers_check_shape(x, [-1, 4], 'x')
            linear = torch.ops.aten.linear.default(x, layer_weight, layer_bias)
            tanh = torch.ops.aten.tanh.default(linear)
            linear_1 = torch.ops.aten.linear.default(tanh, layer_weight, layer_bias)
            return pytree.tree_unflatten((linear_1,), self._out_spec)
    """
    assert readable(gm) == textwrap.dedent(expected).strip()
    check_graph(gm)


def conv_net() -> fx.GraphModule:
    torch.manual_seed(0)
    return fxprune.capture(ConvNet(), (torch.ones(2, 1, 5, 5),), frontend="trace")


def masks() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "conv.weight": torch.randint(2, (2, 1, 3, 3), generator=generator),
        "norm.weight": torch.tensor([1.0, 0.0]),
        "fc.weight": torch.rand(2, 2, generator=generator),
    }


def test_given_masks_are_all_inserted_by_one_call() -> None:
    gm = conv_net()
    dense = {name: gm.get_parameter(name).detach().clone() for name in masks()}
    assert fxprune.mask(gm, masks()) is gm
    check_graph(gm)
    for name, mask in masks().items():
        assert torch.equal(gm.get_buffer(f"{name}_mask").to(mask.dtype), mask)
        assert torch.equal(gm.get_parameter(f"{name}_orig"), dense[name])
    reference = conv_net()
    with torch.no_grad():
        for name, mask in masks().items():
            reference.get_parameter(name).mul_(mask)
    x = torch.rand(3, 1, 6, 6)
    torch.testing.assert_close(gm(x), reference(x))


def test_given_mask_replaces_the_one_in_force() -> None:
    gm = conv_net()
    fxprune.mask(gm, masks())
    text = gm.code
    ones = {name: torch.ones_like(mask) for name, mask in masks().items()}
    fxprune.mask(gm, ones)
    assert gm.code == text
    assert all(gm.get_buffer(f"{name}_mask").dtype == torch.int8 for name in ones)
    torch.testing.assert_close(gm(torch.ones(2, 1, 5, 5)), conv_net()(torch.ones(2, 1, 5, 5)))


def test_mask_can_be_changed_in_place_without_touching_the_graph() -> None:
    gm = conv_net()
    fxprune.identity(gm, "fc.bias")
    x = torch.rand(2, 1, 5, 5)
    before = gm.eval()(x)
    gm.get_buffer("fc.bias_mask").zero_()
    torch.testing.assert_close(gm(x), before - gm.get_parameter("fc.bias_orig"))


def test_product_has_the_name_and_the_example_value_of_what_it_stands_for() -> None:
    gm = fxprune.capture(Bare(), (torch.ones(3, 4),))
    names = [node.name for node in gm.graph.nodes]
    fxprune.identity(gm, "scale")
    nodes = {node.name: node for node in gm.graph.nodes}
    assert [name for name in nodes if name in names] == names
    assert nodes["scale"].meta["val"].shape == (3, 4)
    assert nodes["scale"].meta["val"].dtype == torch.float32


def test_node_of_a_layer_written_out_keeps_its_name_and_example_value() -> None:
    gm = conv_net()
    value = next(node for node in gm.graph.nodes if node.name == "conv").meta["val"]
    fxprune.identity(gm, "conv.weight")
    node = next(node for node in gm.graph.nodes if node.name == "conv")
    assert node.op == "call_function"
    assert node.meta["val"] is value


def test_layer_that_cannot_be_written_out_is_refused_and_no_other_one_is_written_out() -> None:
    model = ConvNet()
    # A batch norm that has running statistics but was told not to track them: torch itself warns of no such thing.
    model.norm.track_running_stats = False
    gm = fxprune.capture(model, (torch.ones(2, 1, 5, 5),), frontend="trace")
    text, keys = gm.code, list(gm.state_dict())
    with pytest.raises(
        fxprune.LoweringError, match=r"node 'norm' calls 'norm' \(BatchNorm2d\).*norm\.weight.*export"
    ) as caught:
        fxprune.mask(gm, masks())
    assert isinstance(caught.value, fxprune.FxpruneError)
    assert gm.code == text
    assert list(gm.state_dict()) == keys
    assert [type(m) for m in (gm.conv, gm.norm, gm.fc)] == [nn.Conv2d, nn.BatchNorm2d, nn.Linear]
    check_graph(gm)


@pytest.mark.parametrize("kind", [KINDS[name] for name in ("conv2d", "bare", "lstm", "tied")], ids=lambda kind: kind.name)
def test_pass_says_that_it_changed_the_graph(kind: Any) -> None:
    gm = fxprune.capture(kind.build(), kind.inputs(), frontend="trace")
    before = gm.code
    given = {name: torch.ones_like(gm.get_parameter(name)) for name in kind.parameters}
    result = Mask(given)(gm)
    assert result.graph_module is gm
    assert result.modified is True
    assert gm.code != before


def test_pass_without_masks_says_that_it_changed_nothing() -> None:
    gm = conv_net()
    before = gm.code
    assert Mask({})(gm).modified is False
    assert gm.code == before


def test_pass_run_twice_is_the_pass_run_once_and_says_so() -> None:
    gm = conv_net()
    Mask(masks())(gm)
    text, state = gm.code, {key: value.clone() for key, value in gm.state_dict().items()}
    result = Mask(masks())(gm)
    assert gm.code == text
    assert list(gm.state_dict()) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in gm.state_dict().items())
    assert result.modified is False


def test_pass_says_that_it_changed_a_mask() -> None:
    gm = conv_net()
    Mask({"fc.bias": torch.ones(2)})(gm)
    assert Mask({"fc.bias": torch.zeros(2)})(gm).modified is True
    assert not gm.get_buffer("fc.bias_mask").any()


def test_passes_compose_in_torchs_pass_manager() -> None:
    gm, reference = conv_net(), conv_net()
    before = gm.code
    manager = PassManager(passes=[Lower(["conv.bias"]), Mask(masks()), Finalize(), RaiseLeaves()])
    result = manager(gm)
    assert result.graph_module is gm
    assert result.modified is True
    assert gm.code == before
    fxprune.finalize(fxprune.mask(reference, masks()))
    assert list(gm.state_dict()) == list(reference.state_dict())
    assert all(torch.equal(value, reference.state_dict()[key]) for key, value in gm.state_dict().items())


def test_pipeline_that_has_nothing_to_do_says_so() -> None:
    gm = conv_net()
    before = gm.code
    result = PassManager(passes=[Mask({}), Lower([]), RaiseLeaves(), Finalize()], steps=3)(gm)
    assert result.modified is False
    assert gm.code == before


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 2).to_sparse(), "layout torch.sparse_coo; give it as a dense tensor"),
        (torch.ones(2, 2, device="meta"), "on the meta device, where it has no values"),
        (torch.full((2, 2), 1j), "has complex values, but the parameter is of dtype torch.float32"),
    ],
)
def test_masks_that_cannot_multiply_the_parameter_are_refused(mask: Tensor, message: str) -> None:
    gm = fxprune.capture(ConvNet(), torch.randn(2, 1, 4, 4))
    before = gm.code
    with pytest.raises(PruningTypeError, match=f"the mask of 'fc.weight' .*{message}"):
        fxprune.mask(gm, {"fc.bias": torch.zeros(2), "fc.weight": mask})
    assert gm.code == before
    assert not fxprune.is_pruned(gm)
