"""capture: a model and example inputs in, a graph out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from fxprune.errors import CaptureError, CaptureWarning, in_short
from fxprune.frontends.capture import Frontend, capture_graph
from fxprune.graph.captured import CapturedModule, compile_all, compiled_later
from fxprune.methods import methods
from fxprune.passes.mask_parameters import insert_masks
from fxprune.torch_internals.switches import alone, deeper, uncollected


def capture(
    model: nn.Module, example_inputs: Any, example_kwargs: Mapping[str, Any] | None = None, *, frontend: Frontend = "auto"
) -> CapturedModule:
    """Turn a model into a ``torch.fx.GraphModule`` that shares its parameters and buffers, but none of its modules.

    The graph takes batches of any size, follows ``train()`` and ``eval()`` as the model does, and has the model's
    state_dict keys. It is captured in the mode that the model is in.

    Args:
        model: the model; left as it was. A captured graph gives a copy that shares its tensors. Parameters pruned by
            ``torch.nn.utils.prune`` are masked in the graph. Of what ``torch.compile``, ``DataParallel`` and
            ``DistributedDataParallel`` make of the model, the graph is that of the model inside, with its names; inside the
            model they keep their part of the names.
        example_inputs: the positional inputs of ``forward`` as a tuple or list, or the single input, usually a tensor. The
            graph and the model are compared on them, so the model has to accept them. Values that are not tensors are fixed
            and checked when the graph runs; but plain numbers stay inputs where the model's code allows it.
        example_kwargs: the keyword inputs.
        frontend: ``"trace"`` for symbolic tracing (module-level graph), ``"export"`` for ``torch.export`` (ATen-level graph),
            ``"auto"`` for the first of these that works.

    Returns:
        The graph, with example values (fake tensors) in ``node.meta["val"]`` wherever they could be computed.

    Raises:
        InputError: the example inputs do not fit the model.
        HookError: a hook of the model takes part in its result and cannot become code of the graph.
        CaptureError: no front end can capture the model; gives the reason of each.

    Warns:
        CaptureWarning: the graph cannot keep something that the model does: a dependence on the mode or on the batch size,
            state in plain Python, items that it gives its inputs, backwards that it writes by hand. Says what and where.

    Example:
        >>> gm = fxprune.capture(torchvision.models.resnet18(), torch.randn(1, 3, 224, 224))
    """
    with uncollected(), deeper(), compiled_later():
        try:
            found = capture_graph(model, example_inputs, example_kwargs, frontend)
        except RecursionError as error:
            raise CaptureError(in_short(error)) from error
        for entry in found.pruned:  # masked as torch.nn.utils.prune had it, the record of its methods included
            insert_masks(found.gm, {entry.name: entry.mask})
            methods.adopt(found.gm, entry.name, entry.method)
        if found.pruned:
            found.gm.recompile()
    compile_all(found.gm)
    with alone():  # another thread may hide warnings in a run
        for note in found.notes:
            warnings.warn(note, CaptureWarning, stacklevel=2)
    return found.gm
