"""What the installed vLLM knows by name, read from its sources: to import it takes seconds."""

import ast
from collections.abc import Collection, Iterator
from importlib.util import find_spec
from pathlib import Path

from llmserve.config.refusals import Parsers

_ARGUMENTS = "EngineArgs"
_TABLES = {"tool_parsers": "_TOOL_PARSERS_TO_REGISTER", "reasoning": "_REASONING_PARSERS_TO_REGISTER"}


def folders_here() -> Iterator[Path]:
    """Yields the folders of the installed vLLM; nothing when there is none."""
    spec = find_spec("vllm")  # of a package that is not part of another: nothing is imported
    yield from map(Path, (spec.submodule_search_locations or ()) if spec else ())


def parsed(file: Path) -> ast.Module:
    """Returns an empty module for a file that cannot be read."""
    try:
        return ast.parse(file.read_text())
    except (OSError, SyntaxError):
        return ast.Module(body=[], type_ignores=[])


def arguments_here() -> Collection[str] | None:
    """Returns the arguments of the installed vLLM's engine; None when there is none, or it keeps them
    elsewhere."""
    for folder in folders_here():
        if names := _fields(parsed(folder / "engine" / "arg_utils.py"), _ARGUMENTS):
            return names
    return None


def parsers_here() -> Parsers | None:
    """Returns the parsers of the installed vLLM; None when there is none, or it keeps the names elsewhere."""
    for folder in folders_here():
        tool, reasoning = (
            _keys(parsed(folder / package / "__init__.py"), table) for package, table in _TABLES.items()
        )
        if tool and reasoning:
            return Parsers(tool, reasoning)
    return None


def _fields(module: ast.Module, name: str) -> Collection[str]:
    """Returns the fields that a class of the module declares."""
    classes = (one for one in module.body if isinstance(one, ast.ClassDef) and one.name == name)
    return frozenset(
        field.target.id
        for found in classes
        for field in found.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )


def _keys(module: ast.Module, name: str) -> Collection[str]:
    """Returns the keys of a mapping that the module assigns."""
    for statement in module.body:
        if isinstance(statement, ast.Assign) and _assigns(statement, name):
            keys = statement.value.keys if isinstance(statement.value, ast.Dict) else ()
            return frozenset(
                key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)
            )
    return ()


def _assigns(statement: ast.Assign, name: str) -> bool:
    return any(isinstance(target, ast.Name) and target.id == name for target in statement.targets)
