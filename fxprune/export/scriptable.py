"""Rewrites a graph so that TorchScript can compile it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.graph import CodeGen

from fxprune.graph.captured import CapturedModule
from fxprune.graph.parts import ByMode, Container, Lowered
from fxprune.graph.paths import sources
from fxprune.graph.scripted import Scripted
from fxprune.torch_internals.graphs import codegen_of
from fxprune.torch_internals.operators import OpOverload
from fxprune.torch_internals.tensors import pytree


def _bare_copy(module: nn.Module) -> nn.Module:
    """Return a module with the tensors, mode and copied submodules of ``module``, and no other attribute."""
    copied: nn.Module
    if isinstance(module, fx.GraphModule):
        copied = CapturedModule(nn.Module(), fx.Graph(), type(module).__name__)
    elif isinstance(module, ByMode):
        copied = ByMode(module.in_train, module.in_eval)
    else:
        copied = Container()
    for name, parameter in module._parameters.items():
        copied.register_parameter(name, parameter)
    for name, buffer in module._buffers.items():
        copied.register_buffer(name, buffer, persistent=name not in module._non_persistent_buffers_set)
    for name, child in module._modules.items():
        copied._modules[name] = None if child is None else _copy_for_script(child)
    copied.training = module.training
    return copied


def scriptable(gm: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of the graph in terms that TorchScript can compile; tensors are shared.

    Operator overloads become the operators that TorchScript resolves itself, inputs and outputs become plain values, and
    stand-ins for lowered modules lose the attributes that TorchScript has no types for.
    """
    copied = _copy_for_script(gm)
    assert isinstance(copied, fx.GraphModule)
    return copied


def _copy_for_script(module: nn.Module) -> nn.Module:
    if isinstance(module, Scripted):
        return copy.copy(module.script())
    is_ours = isinstance(module, fx.GraphModule | ByMode | Lowered) or type(module).forward is nn.Module.forward
    copied = _bare_copy(module) if is_ours else module
    if isinstance(module, fx.GraphModule):
        assert isinstance(copied, fx.GraphModule)
        graph = copy.deepcopy(module.graph)
        _use_plain_values(graph)
        for node in list(graph.nodes):
            if node.target in (_REGIONS.wrap_with_set_grad_enabled, _REGIONS.wrap_with_autocast):
                _inline_region(module, graph, node)
        for node in graph.nodes:
            if node.target is torch.ops.aten.sym_size.int:
                node.op, node.target = "call_method", "size"
            elif isinstance(node.target, OpOverload):
                node.target = node.target.overloadpacket
        copied.graph = graph
        _drop_unused_regions(copied)
    return copied


def _use_plain_values(graph: fx.Graph) -> None:
    """Write the structure of the output into the graph, in types of TorchScript."""
    output = graph.output_node()
    result = output.args[0]
    info = getattr(codegen_of(graph), "pytree_info", None)
    if info is not None:
        leaves = result if isinstance(result, list | tuple) else [result]
        result = pytree.tree_unflatten(leaves, info.out_spec) if info.out_spec is not None else result
        graph.set_codegen(CodeGen())
    made = [node for node in output.all_input_nodes if _makes_mapping(node)]
    output.args = (plain(fx.map_arg(result, lambda node: dict(node.kwargs) if node in made else node)),)
    for node in made:
        if not node.users:
            graph.erase_node(node)
    for node in graph.find_nodes(op="placeholder"):
        if node.type is None and "val" in node.meta and node.meta["val"] is None:
            node.type = Tensor | None


def _makes_mapping(node: fx.Node) -> bool:
    """Tell whether a node makes a mapping of a class of its own, such as an output that is a dataclass and a dict."""
    return node.op == "call_function" and isinstance(node.target, type) and issubclass(node.target, Mapping) and not node.args


def _inline_region(module: nn.Module, graph: fx.Graph, node: fx.Node) -> None:
    """Write the body of a ``no_grad`` or ``autocast`` region in its place, if the region makes no difference.

    Switched-off gradients matter only to operands that depend on a trained parameter. Switched-off autocast matters only where
    autocast is on, which TorchScript decides for itself. All other regions stay; TorchScript refuses them.
    """
    if node.target is _REGIONS.wrap_with_set_grad_enabled:
        enabled, body, *operands = node.args
        transparent = not enabled and not _depends_on_trained(module, operands)
    else:
        _, _, enabled, _, body, *operands = node.args
        transparent = not enabled
    if not transparent or not isinstance(body, fx.Node):
        return
    inner: Any = module.get_submodule(str(body.target))
    places = dict(zip(inner.graph.find_nodes(op="placeholder"), operands, strict=True))
    with graph.inserting_before(node):
        results = graph.graph_copy(inner.graph, places)
    for getitem in list(node.users):
        assert isinstance(results, tuple | list)
        getitem.replace_all_uses_with(results[getitem.args[1]])  # type: ignore[index]
        graph.erase_node(getitem)
    graph.erase_node(node)
    if not body.users:
        graph.erase_node(body)


def _drop_unused_regions(gm: fx.GraphModule) -> None:
    """Drop the bodies of written-out regions, as TorchScript would compile them too."""
    used = {str(node.target) for node in gm.graph.find_nodes(op="get_attr")}
    called = {str(node.target).split(".")[0] for node in gm.graph.find_nodes(op="call_module")}
    for name, child in list(gm._modules.items()):
        if isinstance(child, fx.GraphModule) and name not in used | called:
            del gm._modules[name]


_REGIONS = torch.ops.higher_order


def _depends_on_trained(module: nn.Module, operands: list[Any]) -> bool:
    trained = {name for name, p in module.named_parameters(remove_duplicate=False) if p.requires_grad}
    nodes = [source for operand in operands if isinstance(operand, fx.Node) for source in sources(operand, lambda _: False)]
    called = [module.get_submodule(str(node.target)) for node in nodes if node.op == "call_module"]
    return any(node.op == "get_attr" and node.target in trained for node in nodes) or any(
        parameter.requires_grad for layer in called for parameter in layer.parameters()
    )


def plain(value: Any) -> Any:
    """Return a result with dicts without None in place of mappings, and tuples in place of lists."""
    if isinstance(value, Mapping):
        return {key: plain(v) for key, v in value.items() if v is not None}
    if isinstance(value, tuple | list):
        return tuple(plain(v) for v in value)
    return value
