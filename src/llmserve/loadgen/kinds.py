"""Kinds of requests and tenants, as the command line names them."""

from collections.abc import Mapping
from dataclasses import dataclass

from llmserve.core.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Kind:
    """part: of all conversations, in any unit. Sizes in tokens."""

    name: str
    prompt_tokens: int
    output_tokens: int
    part: float


@dataclass(frozen=True, slots=True)
class Tenant:
    """part: of all conversations, in any unit. key: None sends none."""

    name: str
    key: str | None
    part: float = 1.0


SIZES: Mapping[str, tuple[int, int]] = {"short": (200, 60), "chat": (800, 250), "long": (4000, 500)}


def parse_kind(text: str) -> Kind:
    """`short:70`, `PROMPT/OUTPUT:70` or `NAME=PROMPT/OUTPUT:70`; without `:70` the part is 1.
    Errors: InvalidRequest."""
    sizes, part = _part(text)
    name, is_named, tokens = sizes.rpartition("=")
    if not is_named and sizes in SIZES:
        return Kind(sizes, *SIZES[sizes], part)
    prompt, _, output = tokens.partition("/")
    if not (prompt.isdecimal() and output.isdecimal() and int(prompt) and int(output)):
        raise InvalidRequest(
            f"--mix {text!r}: write NAME:PART with {', '.join(SIZES)}, or NAME=PROMPT/OUTPUT:PART in tokens"
        )
    return Kind(name or tokens, int(prompt), int(output), part)


def parse_tenant(text: str, environment: Mapping[str, str]) -> Tenant:
    """`NAME=KEY` or `NAME:PART=KEY`; a KEY of `@VARIABLE` is read there. Errors: InvalidRequest."""
    head, equals, key = text.partition("=")
    name, part = _part(head)
    if not (name and equals and key):
        raise InvalidRequest(
            "--tenants: write NAME=KEY or NAME:PART=KEY; KEY may be @VARIABLE, of the environment"
        )
    if key.startswith("@"):
        key = environment.get(key[1:], "")
        if not key:
            raise InvalidRequest(f"--tenants: the environment has no key of {name}")
    return Tenant(name, key, part)


def parse_weight(text: str) -> tuple[str, float]:
    """`NAME=4`. Errors: InvalidRequest."""
    name, _, number = text.partition("=")
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if not name or not 0 < weight < float("inf"):
        raise InvalidRequest(f"--weights {text!r}: write NAME=NUMBER with a positive number")
    return name, weight


def _part(text: str) -> tuple[str, float]:
    head, colon, part = text.rpartition(":")
    if not colon:
        return text, 1.0
    try:
        share = float(part)
    except ValueError:
        share = 0.0
    if not 0 < share < float("inf"):
        raise InvalidRequest(f"{text!r}: the part after ':' is {part!r}, not a positive number")
    return head, share
