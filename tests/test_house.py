"""The house: which room stands on which, and that nothing leans on a room above it."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path

import networkx as nx
import pytest

import fxprune

_ROOT = Path(fxprune.__file__).parent

# From the ground up. A room may import what stands on lower floors; rooms of one floor know nothing of each other.
FLOORS = (
    ("errors", "_version", "torch_internals"),
    ("algebra", "graph"),
    ("functional",),
    ("abstract", "export", "rules"),
    ("analysis", "frontends"),
    ("importance", "verification", "zeros"),
    ("planning", "reports"),
    ("passes",),
    ("methods", "testing"),
    ("capture",),
    ("pipeline",),
    ("fxprune",),
)


def _modules() -> dict[str, Path]:
    """Return the files of the package by the dotted names of their modules."""
    files = [*_ROOT.rglob("*.py"), *(_ROOT / "passes").rglob("*.py")]  # rglob does not follow the link
    names = {".".join(("fxprune", *file.relative_to(_ROOT).with_suffix("").parts)): file for file in files}
    return {name.removesuffix(".__init__"): file for name, file in names.items()}


def _imports(name: str, tree: ast.Module, modules: dict[str, Path]) -> Iterator[str]:
    """Yield the modules of the package that a module imports anywhere: at the top, in functions, for types alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports by a relative name"
            for alias in node.names if node.module is not None and node.module.partition(".")[0] == "fxprune" else ():
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in modules else str(node.module)


@pytest.fixture(scope="module")
def imports() -> nx.DiGraph[str]:
    modules = _modules()
    graph: nx.DiGraph[str] = nx.DiGraph()
    for name, file in modules.items():
        for imported in _imports(name, ast.parse(file.read_text(encoding="utf-8")), modules):
            if imported != name:
                graph.add_edge(name, imported)
    return graph


def _room(module: str) -> str:
    return module.split(".")[1] if "." in module else module


def test_no_circle(imports: nx.DiGraph[str]) -> None:
    assert len(imports) > 120
    assert [sorted(c) for c in nx.strongly_connected_components(imports) if len(c) > 1] == []


def test_no_import_goes_up(imports: nx.DiGraph[str]) -> None:
    floor_of = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    assert {_room(module) for module in imports} == set(floor_of), "every room has its floor"
    upwards = [
        f"{module} imports {imported}"
        for module, imported in imports.edges
        if _room(module) != _room(imported) and floor_of[_room(module)] <= floor_of[_room(imported)]
    ]
    assert upwards == []


def test_every_room_says_what_it_is_for() -> None:
    for name, file in _modules().items():
        if file.name == "__init__.py" and name not in ("fxprune", "fxprune.rules", "fxprune.importance", "fxprune.passes"):
            lines = (ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").splitlines()
            assert 5 <= len(lines) <= 15, name
            assert any(line.startswith("Read ") for line in lines), name
            assert any(line.startswith("Tests: ") for line in lines), name


def test_files_and_functions_stay_short() -> None:
    for name, file in _modules().items():
        text = file.read_text(encoding="utf-8")
        assert text.count("\n") <= 400, f"{name} has {text.count(chr(10))} lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) is not None else node.body
                lines = 1 + (body[-1].end_lineno or 0) - body[0].lineno if body else 0
                assert lines <= 60, f"{name}.{node.name} has {lines} lines"


def _keys_of_meta(tree: ast.Module) -> Iterator[ast.expr]:
    """Yield the keys by which code asks ``meta`` of graphs and nodes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) and node.value.attr == "meta":
            yield node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Attribute):
            if node.func.value.attr == "meta" and node.func.attr in ("get", "pop", "setdefault"):
                yield node.args[0]
        elif isinstance(node, ast.Compare) and isinstance(right := node.comparators[0], ast.Attribute) and right.attr == "meta":
            yield node.left


def test_keys_of_meta_stand_in_one_file() -> None:
    modules = _modules()
    del modules["fxprune.graph.metadata"]
    found = [
        f"{name}:{key.lineno}: {ast.unparse(key)}"
        for name, file in modules.items()
        for key in _keys_of_meta(ast.parse(file.read_text(encoding="utf-8")))
        if not (isinstance(key, ast.Constant) and key.value == "val")
    ]
    assert found == [], "fxprune's keys are in graph/metadata.py, and torch's but for 'val', which everybody knows"


# What may be named outside of torch_internals, by attribute, and why.
_STABLE = {
    # The registries of nn.Module, which torch's own documentation of modules and every library that changes them name.
    "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_forward_pre_hooks", "_load_from_state_dict",
    "_getframe",  # Python's, documented
    "_module",  # ours: what the view of a layer that lowering gives to its card is of
}  # fmt: skip


def _private_names(tree: ast.Module) -> Iterator[str]:
    """Yield the private names that a file takes from elsewhere: attributes that no class of the file defines, and imports."""
    own = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    own |= {str(n.arg) for n in ast.walk(tree) if isinstance(n, ast.keyword)}  # such as of ``vars(self).update``
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name):
            own |= {node.attr} if node.value.id == "self" else set()
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            own |= {target.id for target in targets if isinstance(target, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "torch":
            path = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            yield from (f"{node.lineno}: import of {name}" for name in path if name.startswith("_"))
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.startswith("torch.") and "._" in a.name]
            yield from (f"{node.lineno}: import of {name}" for name in names)
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
            of = ast.unparse(node.value)
            is_operator = of in ("aten", "_aten", "torch.ops.aten")  # whose names are torch's to give
            if not (is_operator or of in ("self", "cls") or node.attr in own or node.attr in _STABLE):
                yield f"{node.lineno}: {of}.{node.attr}"


def test_private_names_of_torch_stand_in_torch_internals() -> None:
    found = [
        f"{name}:{private}"
        for name, file in _modules().items()
        if not name.startswith("fxprune.torch_internals.")
        for private in _private_names(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_private_names_are_found() -> None:
    code = """
        import torch._C, os.path
        from torch._ops import OpOverload
        from torch.utils import _pytree as pytree
        class Own:
            _mine: int
            def _do(self): self._kept = self._inherited
            def use(self, other, op): return other._mine, other._kept, other._do, op._schema.name, torch._C._x, aten._view
    """
    found = {private.partition(": ")[2] for private in _private_names(ast.parse(textwrap.dedent(code)))}
    assert found == {"import of torch._C", "import of _ops", "import of _pytree", "op._schema", "torch._C._x", "torch._C"}
