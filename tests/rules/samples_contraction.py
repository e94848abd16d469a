"""Calls of products that are summed over shared axes."""

from __future__ import annotations

from tests.rules.sample import Operand, Sample, real


def _einsum(equation: str, *operands: Operand) -> Sample:
    return Sample("einsum", operands, lambda c: c.call(equation, c.tensors), note=equation)


def _product(ops: str, *operands: Operand) -> Sample:
    return Sample(ops, operands, lambda c: c.call(*c.tensors))


SAMPLES = [
    _product("linear", real(2, 5, 3), real(4, 3), real(4)),
    _product("linear", real(5, 3), real(4, 3)),
    _product("linear", real(3), real(4, 3), real(4)),
    _product("mm", real(3, 4), real(4, 5)),
    _product("bmm", real(2, 3, 4), real(2, 4, 5)),
    _product("mv", real(3, 4), real(4)),
    _product("dot vdot inner linalg_vecdot", real(4), real(4)),
    _product("inner", real(2, 3, 4), real(5, 4)),
    _product("linalg_vecdot", real(2, 3, 4), real(2, 3, 4)),
    _product("linalg_vecdot", real(2, 3, 4), real(3, 4)),
    Sample("linalg_vecdot", (real(2, 4, 3), real(2, 4, 3)), lambda c: c.call(c[0], c[1], dim=1)),
    _product("matmul linalg_matmul", real(4), real(4)),
    _product("matmul linalg_matmul", real(3, 4), real(4)),
    _product("matmul linalg_matmul", real(4), real(4, 5)),
    _product("matmul linalg_matmul", real(4), real(2, 4, 5)),
    _product("matmul linalg_matmul", real(3, 4), real(4, 5)),
    _product("matmul linalg_matmul", real(2, 3, 4), real(4, 5)),
    _product("matmul linalg_matmul", real(3, 4), real(6, 4, 5)),
    _product("matmul linalg_matmul", real(2, 1, 3, 4), real(6, 4, 5)),
    _product("matmul linalg_matmul", real(2, 6, 3, 4), real(1, 4, 5)),
    _product("matmul linalg_matmul", real(2, 6, 1, 4), real(2, 6, 4, 5)),
    _product("addmm", real(5), real(3, 4), real(4, 5)),
    _product("addmm", real(3, 5), real(3, 4), real(4, 5)),
    _product("addmm", real(3, 1), real(3, 4), real(4, 5)),
    Sample("addmm", (real(5), real(3, 4), real(4, 5)), lambda c: c.call(c[0], c[1], c[2], beta=0.5, alpha=2)),
    _product("baddbmm", real(2, 3, 5), real(2, 3, 4), real(2, 4, 5)),
    _product("baddbmm", real(3, 1), real(2, 3, 4), real(2, 4, 5)),
    _product("addbmm", real(3, 5), real(2, 3, 4), real(2, 4, 5)),
    _product("addmv", real(3), real(3, 4), real(4)),
    _product("addr", real(3, 4), real(3), real(4)),
    _product("outer ger", real(3), real(4)),
    _product("bilinear", real(2, 3), real(2, 4), real(5, 3, 4), real(5)),
    _product("bilinear", real(6, 2, 3), real(6, 2, 4), real(5, 3, 4)),
    _einsum("bi,oi->bo", real(2, 3), real(4, 3)),
    _einsum("b i, o i", real(2, 3), real(4, 3)),
    _einsum("bhqd,bhkd->bhqk", real(2, 3, 4, 5), real(2, 3, 6, 5)),
    _einsum("...i,ij->...j", real(2, 3, 4), real(4, 5)),
    _einsum("...ij,...jk->...ik", real(2, 3, 4), real(6, 2, 4, 5)),
    _einsum("ij,jk,kl->il", real(2, 3), real(3, 4), real(4, 5)),
    _einsum("ij,ij,ij->i", real(2, 3), real(2, 3), real(2, 3)),
    _einsum("ij->ji", real(2, 3)),
    _einsum("ij->", real(2, 3)),
    _einsum("ii->i", real(3, 3)),
    _einsum("Bb,bC->BC", real(2, 3), real(3, 4)),
    _einsum("i,j->ij", real(2), real(3)),
    _einsum("bi,oi->bo", real(2, 1), real(4, 3)),
    _einsum("b...,b...->...", real(2, 3, 4), real(2, 3, 4)),
    _einsum("...i->...", real(2, 3, 4)),
]
