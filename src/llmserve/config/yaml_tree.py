"""Reads YAML as plain data with the line of every key, and finds mistakes that YAML itself accepts.

Anchors and merge keys work; a merged key has the line on which it is written.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from llmserve.config.conflict import ManifestProblem, Path

MAX_VALUES = 20_000
"""No manifest has as many values, and aliases that multiply reach the limit at once."""

_MERGE_TAG = "tag:yaml.org,2002:merge"


@dataclass(frozen=True, slots=True)
class Document:
    """data: the values without those that have a problem. lines: the line of every key and list item, and of
    the document at ()."""

    data: Any = None
    lines: Mapping[Path, int] = field(default_factory=dict)
    problems: tuple[ManifestProblem, ...] = ()

    def line(self, path: Path) -> int:
        """Returns the line of the path, or of the nearest path that is in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def read_document(text: str) -> Document:
    """Reads YAML. Never raises: mistakes are in `problems`."""
    try:
        return _read_document(text)
    except RecursionError:
        return Document(problems=(ManifestProblem(1, (), "not YAML: nested too deeply"),))


def _read_document(text: str) -> Document:
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
    except yaml.YAMLError as error:
        return Document(problems=(_syntax_problem(error, text),))
    if root is None:
        return Document()
    reader = _Reader(loader)
    data = reader.read(root, ())
    return Document(data, reader.lines | {(): _line(root)}, tuple(dict.fromkeys(reader.problems)))


class _Refused(Exception):
    """A value has a noted problem and is left out of the data."""


class _Reader:
    """Turns the nodes of one document into data."""

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self._loader = loader
        self._open: list[yaml.Node] = []  # the nodes from the root to the current one
        self._prepared: set[int] = set()
        self._values = 0
        self.lines: dict[Path, int] = {}
        self.problems: list[ManifestProblem] = []

    def read(self, node: yaml.Node, path: Path) -> Any:
        try:
            return self._value(node, path)
        except _Refused:
            return None

    def _value(self, node: yaml.Node, path: Path) -> Any:
        self._values += 1
        if self._values > MAX_VALUES:
            raise self._refuse(node, path[:1], f"too many values: more than {MAX_VALUES} with all aliases")
        if any(node is outer for outer in self._open):
            raise self._refuse(node, path, "the value contains itself")
        self._open.append(node)
        try:
            return self._construct(node, path)
        finally:
            self._open.pop()

    def _construct(self, node: yaml.Node, path: Path) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return list(self._items(node, path))
        try:
            return self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            raise self._refuse(node, path, f"not YAML: {_first_line(error)}") from error

    def _items(self, node: yaml.SequenceNode, path: Path) -> Iterator[Any]:
        for index, item in enumerate(node.value):
            self.lines[*path, index] = _line(item)
            yield self.read(item, (*path, index))

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        self._prepare(node, path)
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            try:
                key = self._key(key_node, path)
                self.lines[*path, key] = _line(key_node)
                data[key] = self._value(value_node, (*path, key))
            except _Refused:
                continue
        return data

    def _prepare(self, node: yaml.MappingNode, path: Path) -> None:
        """Flattens merge keys once per node: flattening changes the node, and an alias visits it again."""
        if id(node) in self._prepared:
            return
        self._prepared.add(id(node))
        self._find_duplicates(node, path)
        try:
            self._loader.flatten_mapping(node)
        except yaml.YAMLError as error:
            raise self._refuse(node, path, f"not YAML: {_first_line(error)}") from error

    def _find_duplicates(self, node: yaml.MappingNode, path: Path) -> None:
        first: dict[str, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == _MERGE_TAG:
                continue
            if key_node.value in first:
                message = f"the key is here twice, first in line {first[key_node.value]}"
                self.problems.append(ManifestProblem(_line(key_node), (*path, key_node.value), message))
            first.setdefault(key_node.value, _line(key_node))

    def _key(self, node: yaml.Node, path: Path) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self._refuse(node, path, "a key must be text, got a list or mapping")
        if node.tag != "tag:yaml.org,2002:str":
            raise self._refuse(node, (*path, node.value), f"a key must be text, got {node.value}")
        return str(node.value)

    def _refuse(self, node: yaml.Node, path: Path, message: str) -> _Refused:
        self.problems.append(ManifestProblem(self.lines.get(path, _line(node)), path, message))
        return _Refused()


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _first_line(error: Exception) -> str:
    text = getattr(error, "problem", None) or str(error)
    return str(text).split("\n", 1)[0]


def _syntax_problem(error: yaml.YAMLError, text: str) -> ManifestProblem:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return ManifestProblem(line, (), f"not YAML: {error.reason}")
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    line = mark.line + 1 if mark is not None else 1
    return ManifestProblem(line, (), f"not YAML: {_first_line(error)}")
