"""Messages for wrong values of a manifest or a request: pydantic's errors in plain words."""

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic_core import ErrorDetails

from llmserve.config.schema.section import ManifestSection, path_text, section_at, walk

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "tuple_type": "a list",
    "list_type": "a list",
    "iterable_type": "a list",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "dict_type": "a mapping of keys",
}

_BOUNDS = {
    "greater_than": ("must be more than {}", "gt"),
    "greater_than_equal": ("must be at least {}", "ge"),
    "less_than": ("must be less than {}", "lt"),
    "less_than_equal": ("must be at most {}", "le"),
    "multiple_of": ("must be a multiple of {}", "multiple_of"),
}


def describe(error: ErrorDetails, *, secret: bool) -> str:
    """Describes one error. A secret value is not shown."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    got = "" if secret else f", got {shown(value)}"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}{got}"
    if kind in _BOUNDS:
        text, bound = _BOUNDS[kind]
        return text.format(number(context[bound])) + got
    if kind == "literal_error":
        return _not_a_choice(value, context["expected"])
    if kind == "string_pattern_mismatch":
        return f"{'the value' if secret else repr(value)} does not have the form {context['pattern']}"
    return _OTHERS.get(kind, error["msg"])


_OTHERS = {
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "finite_number": "must be a finite number",
    "missing": "missing",
}


def shown(value: Any) -> str:
    """Describes a value of the file briefly."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {_cut(value)!r}"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, dict | list | tuple):
        return "a mapping" if isinstance(value, dict) else "a list"
    return f"a {type(value).__name__}"


def number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _not_a_choice(value: Any, expected: str) -> str:
    choices = [choice.strip("'") for choice in expected.replace(" or ", ", ").split(", ")]
    if not isinstance(value, str):
        return f"expected one of {', '.join(choices)}, got {shown(value)}"
    return f"{_cut(value)!r} is not one of {', '.join(choices)}" + did_you_mean(value, choices)


_LIKENESS = 0.7  # gpu is not cpu
_MOST_COMPARED = 200  # choices
_LONGEST_COMPARED = 200  # characters of a word: a request's value may have millions


def did_you_mean(word: str, choices: Sequence[str]) -> str:
    """Returns "; did you mean 'x'?", or nothing. Case, dashes and underscores do not count."""
    plain = {_plain(choice): choice for choice in reversed(choices)}
    close = difflib.get_close_matches(_plain(word[:_LONGEST_COMPARED]), plain, n=1, cutoff=_LIKENESS)
    return f"; did you mean '{plain[close[0]]}'?" if close else ""


def closest_first(word: str, choices: Sequence[str]) -> list[str]:
    """Returns the choices that are like a word before all others, which keep their order. Of a great number,
    only the first ones are compared."""
    plain = {_plain(choice): choice for choice in reversed(choices[:_MOST_COMPARED])}
    close = difflib.get_close_matches(_plain(word[:_LONGEST_COMPARED]), plain, n=5, cutoff=_LIKENESS)
    return list(dict.fromkeys([*(plain[one] for one in close), *choices]))


def _plain(word: str) -> str:
    return word.lower().replace("_", "").replace("-", "")


def unknown_key(root: type[ManifestSection], path: Sequence[str | int]) -> str:
    """Suggests what the key may have been: a key of its section, or one of that name in another section."""
    key, section = str(path[-1]), section_at(root, path[:-1])
    hint = did_you_mean(key, list(section.model_fields)) if section is not None else ""
    if not hint and (others := list(_paths_of(root, key))):
        hint = f"; '{key}' exists as {' and '.join(others)}"
    return f"unknown key{hint}"


def _paths_of(root: type[ManifestSection], key: str) -> Iterator[str]:
    """Yields the keys of this name; of those that the entry of a model repeats, the one for all models."""
    same = [one for one in walk(root) if _plain(one.path[-1]) == _plain(key)]
    for one in same:
        twins = (other for other in same if other.holder is one.holder)
        if one is min(twins, key=lambda other: len(other.path)):
            yield path_text(one.path)
