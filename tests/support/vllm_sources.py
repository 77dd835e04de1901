"""Compares what this tree uses of vLLM with the sources of some build of vLLM, which need not be installed.

The sources are only parsed, so a CUDA build is checked on a machine without a GPU.
"""

import ast
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

Read = Callable[[str], str | None]
"""Maps a path such as vllm/v1/request.py to its text, or to None when there is no such file."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Use:
    """One name that a file of ours imports from a module of vLLM."""

    file: Path
    module: str
    name: str


def uses(files: Iterable[Path]) -> Iterator[Use]:
    """Yields all `from vllm... import ...` of the files, those within functions and type checks as well."""
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                yield from (Use(file, str(node.module), alias.name) for alias in node.names)


@dataclass(frozen=True, slots=True)
class _Derived:
    """A class of ours, its file, and what the file imports from vLLM: name -> (module, name there)."""

    node: ast.ClassDef
    file: Path
    imports: dict[str, tuple[str, str]]

    def bases(self) -> set[str]:
        return {base.id for base in self.node.bases if isinstance(base, ast.Name)}


class VllmSources:
    """Answers questions about the modules and classes of one build of vLLM."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._tree = cache(self._parse)

    def missing(self, use: Use) -> bool:
        """Returns whether the module does not exist or does not define the name."""
        if self._tree(f"{use.module}.{use.name}") is not None:
            return False  # the name is a module
        return use.name not in self._defined(use.module)

    def mismatches(self, files: Iterable[Path]) -> Iterator[str]:
        """Yields a sentence for each method of vLLM's classes that a class of ours, derived from it, lacks or
        does not accept all parameters of."""
        classes = {
            node.name: _Derived(node, file, self._imports(tree))
            for file in files
            for tree in [ast.parse(file.read_text())]
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef)
        }
        inner = {base for derived in classes.values() for base in derived.bases()}
        for name in sorted(classes.keys() - inner):
            own: dict[str, Function] = {}
            for derived in _chain(classes[name], classes):
                own = {method.name: method for method in _methods(derived.node)} | own
                for base in derived.bases() & derived.imports.keys():
                    where = f"{classes[name].file.name}: {name}"
                    yield from self._compare(where, own, *derived.imports[base])

    def _compare(self, where: str, own: dict[str, Function], module: str, name: str) -> Iterator[str]:
        for method in self._all_methods(module, name).values():
            if method.name not in own:
                if _is_abstract(method):
                    yield f"{where} does not implement {name}.{method.name}"
            elif method.name != "__init__" and (lacking := _not_accepted(own[method.name], method)):
                yield f"{where}.{method.name} does not accept {', '.join(lacking)} of {name}.{method.name}"

    def _all_methods(self, module: str, name: str) -> dict[str, Function]:
        """Returns the methods of a class and of its bases within vLLM; the nearest definition wins."""
        tree = self._tree(module)
        found: dict[str, Function] = {}
        if tree is None:
            return found
        imported = self._imports(tree)
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                for base in (base.id for base in node.bases if isinstance(base, ast.Name)):
                    found |= self._all_methods(*imported.get(base, (module, base)))
                return found | {method.name: method for method in _methods(node)}
        return self._all_methods(*imported[name]) if name in imported else found

    def _defined(self, module: str) -> frozenset[str]:
        """Returns the names that a module binds at its top level, under `if` and `try` as well."""
        tree = self._tree(module)
        return frozenset(_bound(tree.body)) if tree else frozenset()

    def _imports(self, tree: ast.Module) -> dict[str, tuple[str, str]]:
        return {
            alias.asname or alias.name: (node.module, alias.name)
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vllm"
            for alias in node.names
        }

    def _parse(self, module: str) -> ast.Module | None:
        path = module.replace(".", "/")
        text = self._read(f"{path}.py")
        text = self._read(f"{path}/__init__.py") if text is None else text
        return None if text is None else ast.parse(text)


def _chain(derived: _Derived, classes: dict[str, _Derived]) -> Iterator[_Derived]:
    """Yields a class and the classes of ours that it derives from, the nearest first."""
    yield derived
    for base in sorted(derived.bases() & classes.keys()):
        yield from _chain(classes[base], classes)


def _methods(node: ast.ClassDef) -> Iterator[Function]:
    yield from (item for item in node.body if isinstance(item, Function))


def _is_abstract(method: Function) -> bool:
    return any(isinstance(mark, ast.Name) and mark.id == "abstractmethod" for mark in method.decorator_list)


def _not_accepted(ours: Function, theirs: Function) -> list[str]:
    """Returns the parameters of their method that a call could pass and ours would refuse."""
    names = {argument.arg for argument in (*_positional(ours), *ours.args.kwonlyargs)}
    room = len(_positional(ours))
    lacking = [] if ours.args.vararg else [argument.arg for argument in _positional(theirs)[room:]]
    keywords = [] if ours.args.kwarg else [a.arg for a in theirs.args.kwonlyargs if a.arg not in names]
    return lacking + keywords


def _positional(function: Function) -> list[ast.arg]:
    return [*function.args.posonlyargs, *function.args.args]


def _bound(body: Iterable[ast.stmt]) -> Iterator[str]:
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Import() | ast.ImportFrom():
                yield from ((alias.asname or alias.name).split(".")[0] for alias in node.names)
            case ast.Assign() | ast.AnnAssign() | ast.AugAssign():
                yield from _assigned(node)
            case ast.If() | ast.Try() | ast.With():
                for inner in ast.iter_child_nodes(node):
                    if isinstance(inner, ast.stmt):
                        yield from _bound([inner])
                    elif isinstance(inner, ast.ExceptHandler):
                        yield from _bound(inner.body)


def _assigned(node: ast.Assign | ast.AnnAssign | ast.AugAssign) -> Iterator[str]:
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))
    if isinstance(node.value, ast.Dict):  # vllm/__init__.py imports the names of MODULE_ATTRS when asked for
        yield from (str(key.value) for key in node.value.keys if isinstance(key, ast.Constant))
