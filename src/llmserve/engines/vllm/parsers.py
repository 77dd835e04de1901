"""The names of vLLM's parsers, read from its sources: importing it takes seconds, and a check has none."""

import ast
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

from llmserve.config.refusals import Parsers

_TABLES = {"tool_parsers": "_TOOL_PARSERS_TO_REGISTER", "reasoning": "_REASONING_PARSERS_TO_REGISTER"}


def parsers_here() -> Parsers | None:
    """Returns the parsers of the installed vLLM; None when there is none, or it keeps the names elsewhere."""
    spec = find_spec("vllm")  # of a package that is not part of another: nothing is imported
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        tool, reasoning = (_names(Path(folder) / package, table) for package, table in _TABLES.items())
        if tool and reasoning:
            return Parsers(tool, reasoning)
    return None


def _names(package: Path, table: str) -> Collection[str]:
    """The keys of a mapping that the package's first file assigns."""
    try:
        module = ast.parse((package / "__init__.py").read_text())
    except (OSError, SyntaxError):
        return ()
    for statement in module.body:
        if isinstance(statement, ast.Assign) and _assigns(statement, table):
            return _keys(statement.value)
    return ()


def _assigns(statement: ast.Assign, name: str) -> bool:
    return any(isinstance(target, ast.Name) and target.id == name for target in statement.targets)


def _keys(value: ast.expr) -> Collection[str]:
    keys = value.keys if isinstance(value, ast.Dict) else ()
    return frozenset(
        key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)
    )
