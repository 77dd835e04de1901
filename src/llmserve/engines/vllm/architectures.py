"""What vLLM can do with an architecture, read from its sources: importing it takes seconds."""

import ast
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llmserve.engines.vllm.sources import folders_here, parsed

_TABLES_END = "_MODELS"
_LORA = "SupportsLoRA"
_parsed = functools.cache(parsed)


@dataclass(frozen=True, slots=True)
class Support:
    """known: vLLM has a class for the architecture. lora: the class takes adapters."""

    known: bool
    lora: bool


def support_here(architecture: str) -> Support | None:
    """Returns what the installed vLLM can do; None when there is none, or it keeps its models elsewhere."""
    for place in folders_here():
        folder = place / "model_executor" / "models"
        places = dict(_registered(folder / "registry.py"))
        if places:
            found = places.get(architecture)
            return Support(found is not None, found is not None and _has_base(folder, *found, _LORA))
    return None


def _registered(registry: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yields each architecture with the module and the class that the registry names."""
    for statement in _parsed(registry).body:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
            if any(name.endswith(_TABLES_END) for name in names):
                yield from _entries(statement.value)


def _entries(table: ast.Dict) -> Iterator[tuple[str, tuple[str, str]]]:
    for key, value in zip(table.keys, table.values, strict=True):
        match key, value:
            case (
                ast.Constant(value=str(name)),
                ast.Tuple(elts=[ast.Constant(value=str(module)), ast.Constant(value=str(kind))]),
            ):
                yield name, (module, kind)


def _has_base(folder: Path, module: str, kind: str, wanted: str) -> bool:
    """Whether a class has a base of this name, itself or by its bases in the same folder."""
    tree = _parsed(folder / f"{module}.py")
    found = next((one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == kind), None)
    if found is None:
        return False
    bases = [base.id for base in found.bases if isinstance(base, ast.Name)]
    if wanted in bases:
        return True
    origins = dict(_imported(tree))
    places = (origins.get(base, (module, base)) for base in bases if base != kind)
    return any(_has_base(folder, *place, wanted) for place in places)


def _imported(tree: ast.Module) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yields the names that a module takes from others of its folder, each with its module and name there."""
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.level == 1 and statement.module:
            for alias in statement.names:
                yield alias.asname or alias.name, (statement.module, alias.name)
