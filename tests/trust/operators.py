"""Small changes to Python code, of the kinds a bug is made of. Left as they are: docstrings and other
strings, annotations, decorators, imports, and what only words an error."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip


@dataclass
class Mutation:
    """One change to a tree: its place, what it is, how to make it and how to take it back."""

    line: int
    function: str
    what: str
    make: Callable[[], None]
    undo: Callable[[], None]


def words(node: ast.AST) -> bool:
    """Whether a node is there for people: what it says may be said otherwise."""
    if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom)):
        return True
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        name = node.func.id if isinstance(node.func, ast.Name) else name
        return name.startswith("fail") or name == "register"
    return False


def mutations(node: ast.AST, function: str = "", skip: tuple[str, ...] = ()) -> Iterator[Mutation]:
    """Every change to `node` and below, in the order of the source; not in functions named in `skip`."""
    if words(node):
        return
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        if node.name in skip:
            return
        function = f"{function}.{node.name}".lstrip(".")
    yield from own_mutations(node, function)
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "bases"):
            continue
        children = value if isinstance(value, list) else [value]
        for child in children:
            if isinstance(child, ast.AST):
                yield from mutations(child, function, skip)


def own_mutations(node: ast.AST, function: str) -> Iterator[Mutation]:
    line = getattr(node, "lineno", 0)

    def change(owner: object, field: str, new: object, what: str) -> Mutation:
        old = getattr(owner, field)
        return Mutation(
            line,
            function,
            what,
            lambda: setattr(owner, field, new),
            lambda: setattr(owner, field, old),
        )

    def named(op: ast.AST) -> str:
        return type(op).__name__

    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            swapped = SWAPS[type(op)]()
            ops = [*node.ops[:i], swapped, *node.ops[i + 1 :]]
            yield change(node, "ops", ops, f"{named(op)} to {named(swapped)}: {ast.unparse(node)}")
    elif isinstance(node, (ast.BinOp, ast.BoolOp, ast.AugAssign)) and type(node.op) in SWAPS:
        swapped = SWAPS[type(node.op)]()
        yield change(
            node, "op", swapped, f"{named(node.op)} to {named(swapped)}: {ast.unparse(node)}"
        )
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield change(node, "value", not node.value, f"{node.value} to {not node.value}")
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield change(node, "value", node.value + 1, f"{node.value} to {node.value + 1}")
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        yield change(node, "op", ast.UAdd(), f"{named(node.op)} dropped: {ast.unparse(node)}")
    elif isinstance(node, ast.Return) and node.value is not None:
        yield change(node, "value", ast.Constant(None), f"returns None: {ast.unparse(node.value)}")
    elif isinstance(node, ast.If) and not node.orelse:
        yield change(node, "test", ast.Constant(False), f"never: if {ast.unparse(node.test)}")
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and not words(node.value):
        yield change(node, "value", ast.Constant(None), f"dropped: {ast.unparse(node.value)}")
