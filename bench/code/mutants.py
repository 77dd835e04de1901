"""Mutants of a module: its syntax tree with one operator, constant or call changed."""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

_OPERATORS: dict[type[ast.AST], type[Any]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.BitXor: ast.BitAnd,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}
# What says nothing of a decision: invariants that only tests call, texts for people, and logging.
_SKIPPED_FUNCTIONS = frozenset({"check_integrity", "__repr__", "__str__", "describe"})
_SKIPPED_OWNERS = frozenset({"_log", "logging"})
# Arguments that only guard against a wrong caller.
_SKIPPED_KEYWORDS = frozenset({"strict", "slots", "frozen", "eq", "sort_keys"})


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change of a file. number: its place among the file's changes. text: the line where it begins.
    before, after: the changed piece of code."""

    path: Path
    number: int
    line: int
    text: str
    before: str
    after: str

    def diff(self) -> str:
        return f"{self.path}:{self.line}: {self.text}\n- {self.before}\n+ {self.after}"


def mutants(path: Path) -> list[Mutant]:
    text, lister = path.read_text(), _Mutator(None)
    lister.visit(ast.parse(text))
    lines = text.splitlines()
    return [
        Mutant(path, number, line, lines[line - 1].strip(), before, after)
        for number, (line, before, after) in enumerate(lister.found)
    ]


def mutated(path: Path, number: int) -> ast.Module:
    tree: ast.Module = _Mutator(number).visit(ast.parse(path.read_text()))
    return ast.fix_missing_locations(tree)


def compiled(path: Path, number: int | None = None) -> CodeType:
    """The module's code, changed by the mutant of this number, if any."""
    tree = ast.parse(path.read_text()) if number is None else mutated(path, number)
    return compile(tree, str(path.resolve()), "exec", dont_inherit=True)


class _Mutator(ast.NodeTransformer):
    """Finds what can be changed, in the order of the source; changes the one that is wanted, if any."""

    def __init__(self, wanted: int | None) -> None:
        self._wanted = wanted
        self.found: list[tuple[int, str, str]] = []

    def generic_visit(self, node: ast.AST) -> ast.AST:
        result = node
        for changed in _changes(node):
            if len(self.found) == self._wanted:
                result = ast.copy_location(changed, node)
            line = getattr(node, "lineno", 0)
            self.found.append((line, ast.unparse(node), ast.unparse(changed)))
        super().generic_visit(node)
        return result

    def _visit_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        if node.name not in _SKIPPED_FUNCTIONS:
            node.args.defaults = [self.visit(one) for one in node.args.defaults]
            node.args.kw_defaults = [one and self.visit(one) for one in node.args.kw_defaults]
            node.body = [self.visit(one) for one in node.body]
        return node

    visit_FunctionDef = visit_AsyncFunctionDef = _visit_function  # noqa: N815

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.body = [self.visit(one) for one in node.body]
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.value = node.value and self.visit(node.value)
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        is_type_alias = isinstance(node.value, ast.BinOp) and isinstance(node.value.op, ast.BitOr)
        return node if is_type_alias else self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        return node if _is_logging(node) else self.generic_visit(node)

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        return node if node.arg in _SKIPPED_KEYWORDS else self.generic_visit(node)

    def _skip(self, node: ast.AST) -> ast.AST:
        return node

    visit_Assert = visit_Raise = visit_JoinedStr = visit_Import = visit_ImportFrom = _skip  # noqa: N815


def _changes(node: ast.AST) -> Iterator[ast.AST]:
    changed: Any = copy.deepcopy(node)
    match node:
        case ast.Compare(ops=operators):
            for index, operator in enumerate(operators):
                one = copy.deepcopy(changed)
                one.ops[index] = _other(operator)
                yield one
        case ast.BinOp(op=operator) | ast.AugAssign(op=operator) | ast.BoolOp(op=operator):
            changed.op = _other(operator)
            yield changed
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield changed.operand
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value) | float(value)):
            yield ast.Constant(2 * value if value > 2 else value + 1)
        case ast.Expr(value=ast.Call() | ast.Await(value=ast.Call())):
            yield ast.Pass()
        case ast.Call(func=ast.Name(id=name)) if name in _CALLS:
            changed.func = ast.Name(_CALLS[name], ast.Load())
            yield changed


def _other(operator: ast.AST) -> Any:
    return _OPERATORS[type(operator)]()


def _is_logging(node: ast.Expr) -> bool:
    called = node.value.func if isinstance(node.value, ast.Call) else None
    return (
        isinstance(called, ast.Attribute)
        and isinstance(called.value, ast.Name)
        and called.value.id in _SKIPPED_OWNERS
    )
