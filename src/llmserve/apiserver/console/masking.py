"""The text of a manifest without its secrets, for people to read. Pure."""

import re
from collections.abc import Iterator

import yaml

from llmserve.core.errors import ManifestError

MASK = "••••••"

_Path = tuple[str | int, ...]
_MOST_NODES = 20_000  # as config.yaml_tree.MAX_VALUES: aliases may multiply
_SECRET_NAME = re.compile(r"(key|token|secret|password|credentials?)$", re.IGNORECASE)
_USER_INFO = re.compile(r"(?<=://)[^\s/@'\"]+(?=@)")
_IN_COMMENT = re.compile(r"(#.*?\b\w*(?:key|token|secret|password)\s*:\s*)[^\s,}]+", re.IGNORECASE)


def masked(text: str) -> str:
    """Returns the text with as many lines. What it hides: keys of clients, variables of engines whose name is
    that of a secret, names and passwords in URLs, and values after such names in comments. Errors:
    ManifestError when it is not YAML, so that nobody knows what is secret in it."""
    for start, end in sorted(_spans(text), reverse=True):
        text = text[:start] + MASK + "\n" * text.count("\n", start, end) + text[end:]
    return _IN_COMMENT.sub(rf"\1{MASK}", _USER_INFO.sub(MASK, text))


def _spans(text: str) -> set[tuple[int, int]]:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        nodes = _secrets(root, (), [_MOST_NODES]) if root is not None else ()
        return {(node.start_mark.index, node.end_mark.index) for node in nodes}
    except (yaml.YAMLError, RecursionError) as error:
        raise ManifestError("the text is not YAML, or too large to be searched for secrets") from error


def _secrets(node: yaml.Node, path: _Path, left: list[int]) -> Iterator[yaml.Node]:
    """left: how many nodes may be visited yet."""
    left[0] -= 1
    if left[0] < 0:
        raise RecursionError
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _secrets(item, (*path, index), left)
    elif isinstance(node, yaml.MappingNode):
        yield from _in_mapping(node, path, left)
    elif path[-1:] == ("key",) and "api_keys" in path:
        yield node


def _in_mapping(node: yaml.MappingNode, path: _Path, left: list[int]) -> Iterator[yaml.Node]:
    fields = {key.value: value for key, value in node.value if isinstance(key, yaml.ScalarNode)}
    if "env" in path and _is_secret_variable(fields.get("name")):
        yield from (value for name, value in fields.items() if name == "value")
    for name, value in fields.items():
        yield from _secrets(value, (*path, name), left)


def _is_secret_variable(name: yaml.Node | None) -> bool:
    return isinstance(name, yaml.ScalarNode) and _SECRET_NAME.search(name.value) is not None
