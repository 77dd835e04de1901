"""The text of a manifest without its secrets, for people to read. Pure. The text may be wrong in any way: it
is shown beside the reason why it cannot be used."""

import re
from collections.abc import Iterator

import yaml

from llmserve.config.schema import ApiKey
from llmserve.core.errors import ManifestError

MASK = "••••••"

_Path = tuple[str, ...]  # names of keys, without places in lists
_MOST_NODES = 20_000  # as config.yaml_tree.MAX_VALUES: aliases may multiply
_MERGE = "<<"
_SHOWN_OF_A_KEY = frozenset(ApiKey.model_fields) - {"key"}
_SECRET_NAME = re.compile(
    r"(key|token|secret|password|passwd|passphrase|credentials?|authorization|_headers)$", re.IGNORECASE
)
# They end like the name of a secret, and have the name of a file or of an object of Kubernetes.
_NO_SECRETS = frozenset({("tls", "key"), ("k8s", "secret"), ("k8s", "image_pull_secret")})
_USER_INFO = re.compile(r"(?<=://)\S+(?=@)")
_IN_LINE = r"[^\n\r\x85\u2028\u2029]*"
_IN_COMMENT = re.compile(
    rf"(#{_IN_LINE}?(?:key|token|secret|password|value)(?!_env|s\b)\w*[\"']?[ \t]*[:=,]){_IN_LINE}",
    re.IGNORECASE,
)


def masked(text: str) -> str:
    """Returns the text with as many lines. What it hides: keys of clients, options and variables of engines
    whose name is that of a secret, names and passwords in URLs, and what follows such names in comments.
    Errors: ManifestError when it is not YAML, so that nobody knows what is secret in it."""
    for start, end in sorted(_spans(text), reverse=True):
        text = text[:start] + MASK + _line_ends(text[start:end]) + text[end:]
    return _IN_COMMENT.sub(rf"\1 {MASK}", _USER_INFO.sub(MASK, text))


def _line_ends(text: str) -> str:
    """Returns as many line ends as the text has, whichever they are."""
    return "\n" * (len(f"{text}.".splitlines()) - 1)


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
        for item in node.value:
            yield from _secrets(item, path, left)
    elif isinstance(node, yaml.MappingNode):
        for name, value in _named_values(node):
            yield from _secrets(value, path if name == _MERGE else (*path, name), left)
    elif _is_secret(path):
        yield node


def _named_values(node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node]]:
    """Yields all values, those of a name that is there twice, too. The value of a variable has its name."""
    pairs = [(key.value, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)]
    variables = [
        value.value for name, value in pairs if name == "name" and isinstance(value, yaml.ScalarNode)
    ]
    secret = next(filter(_SECRET_NAME.search, variables), "value")
    for name, value in pairs:
        yield (secret if name == "value" else name), value


def _is_secret(path: _Path) -> bool:
    if "api_keys" in path:
        inside = path[path.index("api_keys") + 1 :]
        return not inside or inside[0] not in _SHOWN_OF_A_KEY
    if path[-2:] == ("engine", "env"):  # text in place of a variable, such as NAME=VALUE
        return True
    return bool(path) and _SECRET_NAME.search(path[-1]) is not None and path[-2:] not in _NO_SECRETS
