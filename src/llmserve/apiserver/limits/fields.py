"""Limits of the fields of a request, checked before anything is made of them. Pure.

The same names mean the same on all routes, so that one table of them is enough. What is no number or list is
left to the route, which says in its own words what it expects.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llmserve.config.schema.limits import SecurityLimits
from llmserve.core.errors import InvalidRequest

_CHOICES = ("n", "best_of")
_MAX_TOKENS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens", "max_length")
_STOP_TEXTS = ("stop", "stop_sequences")
_STOPS = (*_STOP_TEXTS, "stop_token_ids")
_TOKEN_LISTS = ("logit_bias", "allowed_token_ids", "bad_words")
_CACHE_SALT = "cache_salt"
# The fields that may hold several prompts: texts, lists of tokens, or conversations.
_PROMPTS = (
    *("prompt", "prompts", "input", "messages"),
    *("items", "documents", "queries", "text_1", "text_2", "data_1", "data_2"),
)


@dataclass(frozen=True, slots=True)
class _Excess:
    """amount: None when it is no number of things, but of characters."""

    field: str
    setting: str
    most: int
    what: str
    got: float

    def as_error(self) -> InvalidRequest:
        got = f"{self.got:.0f}" if math.isfinite(self.got) else str(self.got)
        message = (
            f"{self.field} may {self.what.format(self.most)}, got {got} (security.limits.{self.setting})"
        )
        return InvalidRequest(message, field=self.field)


def check_fields(fields: Mapping[str, Any], limits: SecurityLimits) -> None:
    """fields: a body, as JSON. Errors: InvalidRequest for the first field beyond its limit."""
    for excess in _excesses(fields, limits):
        raise excess.as_error()


def _excesses(fields: Mapping[str, Any], limits: SecurityLimits) -> Iterator[_Excess]:
    for name in _present(fields, _CHOICES):
        yield from _number(name, fields[name], "choices", limits.choices)
    if limits.max_tokens is not None:
        for name in _present(fields, _MAX_TOKENS):
            yield from _number(name, fields[name], "max_tokens", limits.max_tokens)
    for name in _present(fields, _STOPS):
        yield from _length(name, fields[name], "stop", limits.stop)
    for name in _present(fields, _STOP_TEXTS):
        for text in _texts(fields[name]):
            yield from _characters(name, text, "stop_characters", limits.stop_characters)
    for name in _present(fields, _TOKEN_LISTS):
        yield from _length(name, fields[name], "logit_bias", limits.logit_bias)
    for name in _present(fields, (_CACHE_SALT,)):
        yield from _characters(name, fields[name], "cache_salt_characters", limits.cache_salt_characters)
    yield from _prompts(fields, limits.prompts)


def _present(fields: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[str]:
    return (name for name in names if fields.get(name) is not None)


def _number(name: str, value: Any, setting: str, most: int) -> Iterator[_Excess]:
    number = _as_number(value)
    if number > most:
        yield _Excess(name, setting, most, "be at most {}", number)


def _as_number(value: Any) -> float:
    """Returns the number that a route would read; 0 of what is none. Routes take "5" for 5."""
    if not isinstance(value, int | float | str):
        return 0
    try:
        return float(value)
    except OverflowError:
        return math.inf
    except ValueError:
        return 0


def _length(name: str, value: Any, setting: str, most: int) -> Iterator[_Excess]:
    if isinstance(value, list | dict) and len(value) > most:
        yield _Excess(name, setting, most, "have at most {} entries", len(value))


def _characters(name: str, value: Any, setting: str, most: int) -> Iterator[_Excess]:
    if isinstance(value, str) and len(value) > most:
        yield _Excess(name, setting, most, "have at most {} characters", len(value))


def _texts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _prompts(fields: Mapping[str, Any], most: int) -> Iterator[_Excess]:
    choices = max(1.0, *(_as_number(fields.get(name)) for name in _CHOICES))
    for name in _present(fields, _PROMPTS):
        count = _prompts_in(name, fields[name]) * choices
        if count > most:
            yield _Excess(name, "prompts", most, "stand for at most {} prompts, each counted n times", count)


def _prompts_in(name: str, value: Any) -> int:
    """Returns how many prompts a field holds. A list of tokens or of messages is one prompt."""
    if not isinstance(value, list) or not value:
        return 1
    is_one = isinstance(value[0], int) or (name in ("messages", "input") and isinstance(value[0], dict))
    return 1 if is_one else len(value)
