"""Calls of operators that give the same elements another shape."""

from __future__ import annotations

import torch

from tests.rules.sample import Run, Sample, complex_, real

_RESHAPES = "view _unsafe_view reshape view_copy _reshape_copy"


def _to(*shape: int) -> Run:
    return lambda c: c.call(c[0], c.out(*shape))


SAMPLES = [
    Sample(_RESHAPES, (real(2, 12),), _to(2, 3, 4), note="split"),
    Sample(_RESHAPES, (real(2, 3, 4),), _to(2, 12), note="merge"),
    Sample(_RESHAPES, (real(2, 30),), _to(2, 3, 5, 2), note="split in three"),
    Sample(_RESHAPES, (real(4, 3),), _to(2, 2, 3), note="split the first"),
    Sample(_RESHAPES, (real(4, 6),), _to(3, 8), note="regroup"),
    Sample(_RESHAPES, (real(2, 3, 5),), _to(2, 1, 3, 5, 1), note="sizes of one"),
    Sample(_RESHAPES, (real(1, 3, 1, 5),), _to(3, 1, 5), note="sizes of one move"),
    Sample(_RESHAPES, (real(2, 6, 5),), _to(12, 5)),
    Sample(_RESHAPES, (real(6, 5),), _to(30), note="flat"),
    Sample("_reshape_alias", (real(2, 12),), lambda c: c.call(c[0], c.out(2, 3, 4), torch.empty(c.out(2, 3, 4)).stride())),
    Sample("reshape_as view_as", (real(2, 12), real(2, 3, 4)), lambda c: c.call(c[0], c[1])),
    Sample("reshape_as view_as", (real(2, 3, 4), real(2, 12)), lambda c: c.call(c[0], c[1])),
    Sample("flatten.using_ints", (real(2, 3, 4),), lambda c: c.call(c[0], 1, -1)),
    Sample("flatten.using_ints", (real(2, 3, 4),), lambda c: c.call(c[0], 0, 1)),
    Sample("unflatten.int", (real(2, 12),), lambda c: c.call(c[0], 1, c.out(2, 3, 4)[1:])),
    Sample("ravel", (real(3, 4),), lambda c: c.call(c[0])),
    Sample("squeeze squeeze_copy", (real(1, 3, 1, 4),), lambda c: c.call(c[0])),
    Sample("squeeze.dim squeeze_copy.dim", (real(1, 3, 1, 4),), lambda c: c.call(c[0], 2)),
    Sample("squeeze.dim squeeze_copy.dim", (real(3, 4),), lambda c: c.call(c[0], 1), note="of no dimension"),
    Sample("squeeze.dims squeeze_copy.dims", (real(1, 3, 1, 4),), lambda c: c.call(c[0], [0, 2])),
    Sample("unsqueeze unsqueeze_copy", (real(3, 4),), lambda c: c.call(c[0], 1)),
    Sample("unsqueeze unsqueeze_copy", (real(3, 4),), lambda c: c.call(c[0], -1)),
    Sample("atleast_1d atleast_2d", (real(3),), lambda c: c.call(c[0])),
    Sample("atleast_1d atleast_2d", (real(3, 4),), lambda c: c.call(c[0])),
    Sample("expand expand_copy broadcast_to", (real(3, 1),), _to(2, 3, 4)),
    Sample("expand expand_copy broadcast_to", (real(3, 4),), _to(5, 3, 4)),
    Sample("expand_as", (real(3, 1), real(2, 3, 4)), lambda c: c.call(c[0], c[1])),
    Sample("permute permute_copy", (real(2, 3, 4),), lambda c: c.call(c[0], [2, 0, -2])),
    Sample("transpose.int transpose_copy.int swapdims swapaxes", (real(2, 3, 4),), lambda c: c.call(c[0], 0, -1)),
    Sample("movedim.int moveaxis.int", (real(2, 3, 4),), lambda c: c.call(c[0], 0, -1)),
    Sample("movedim.intlist moveaxis.intlist", (real(2, 3, 4, 5),), lambda c: c.call(c[0], [0, 1], [-1, 0])),
    Sample("t t_copy numpy_T", (real(3, 4),), lambda c: c.call(c[0])),
    Sample("t t_copy", (real(3),), lambda c: c.call(c[0])),
    Sample("numpy_T", (real(2, 3),), lambda c: c.call(c[0])),
    Sample("mT adjoint mH", (real(2, 3, 4),), lambda c: c.call(c[0])),
    Sample("mH", (complex_(3, 4),), lambda c: c.call(c[0])),
    Sample("view.dtype", (real(3, 4),), lambda c: c.call(c[0], torch.int64)),
    Sample("view.dtype", (real(3, 4),), lambda c: c.call(c[0], torch.complex128)),
    Sample("view.dtype", (real(3, 4),), lambda c: c.call(c[0], torch.int32)),
    Sample("view_as_complex view_as_complex_copy", (real(3, 4, 2),), lambda c: c.call(c[0])),
    Sample("view_as_real view_as_real_copy", (complex_(3, 4),), lambda c: c.call(c[0])),
]
