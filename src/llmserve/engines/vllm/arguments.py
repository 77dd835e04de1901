"""The names of the arguments of vLLM's engine, read from its sources, as those of its parsers are."""

import ast
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

_CLASS = "EngineArgs"


def arguments_here() -> Collection[str] | None:
    """Returns the arguments of the installed vLLM; None when there is none, or it keeps them elsewhere."""
    spec = find_spec("vllm")  # of a package that is not part of another: nothing is imported
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if names := _fields(Path(folder) / "engine" / "arg_utils.py"):
            return names
    return None


def _fields(file: Path) -> Collection[str]:
    try:
        module = ast.parse(file.read_text())
    except (OSError, SyntaxError):
        return ()
    classes = (one for one in module.body if isinstance(one, ast.ClassDef) and one.name == _CLASS)
    return frozenset(
        field.target.id
        for found in classes
        for field in found.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )
