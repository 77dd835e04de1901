"""What to send: kinds of requests and tenants, and conversations, from a mix or from a trace."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from llmserve.core.errors import InvalidRequest
from llmserve.traces import TracedRequest


@dataclass(frozen=True, slots=True)
class LoadKind:
    """part: share of all conversations, in any unit. Sizes are in tokens."""

    name: str
    prompt_tokens: int
    output_tokens: int
    part: float


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant who has a part of the conversations. part: its share of all of them, in any unit. key: its API
    key; None: requests carry none."""

    name: str
    key: str | None
    part: float = 1.0


SIZES: Mapping[str, tuple[int, int]] = {"short": (200, 60), "chat": (800, 250), "long": (4000, 500)}


def parse_kind(text: str) -> LoadKind:
    """Reads `short:70`, `PROMPT/OUTPUT:70` or `NAME=PROMPT/OUTPUT:70`; without `:70` the part is 1. Errors:
    InvalidRequest."""
    sizes, part = _part(text)
    name, is_named, tokens = sizes.rpartition("=")
    if not is_named and sizes in SIZES:
        return LoadKind(sizes, *SIZES[sizes], part)
    prompt, _, output = tokens.partition("/")
    if not (prompt.isdecimal() and output.isdecimal() and int(prompt) and int(output)):
        raise InvalidRequest(
            f"--mix {text!r}: write NAME:PART with {', '.join(SIZES)}, or NAME=PROMPT/OUTPUT:PART in tokens"
        )
    return LoadKind(name or tokens, int(prompt), int(output), part)


def parse_tenant(text: str, environment: Mapping[str, str]) -> Tenant:
    """Reads `NAME=KEY` or `NAME:PART=KEY`; a KEY of `@VARIABLE` is taken from the environment. Errors:
    InvalidRequest."""
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
    """Reads `NAME=4`. Errors: InvalidRequest."""
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


@dataclass(frozen=True, slots=True)
class PromptPiece:
    """The first tokens of the endless text of a name. Pieces of one name begin alike."""

    name: str
    tokens: int


@dataclass(frozen=True, slots=True)
class Turn:
    """prompt: the pieces that the turn adds to the conversation."""

    prompt: tuple[PromptPiece, ...]
    output_tokens: int

    @property
    def prompt_tokens(self) -> int:
        return sum(piece.tokens for piece in self.prompt)


@dataclass(frozen=True, slots=True)
class Conversation:
    """starts_at: seconds from the start to the first turn (open loop only). adapter: name of the LoRA adapter
    that all turns ask for; empty asks for the model itself."""

    index: int
    kind: str
    tenant: str
    turns: tuple[Turn, ...]
    starts_at: float = 0.0
    adapter: str = ""


@dataclass(frozen=True, slots=True)
class AdapterMix:
    """Adapters by name, the most wanted first. zipf: the one of rank r is wanted in proportion to
    1 / r**zipf; 0 wants all alike."""

    names: Sequence[str]
    zipf: float

    def spread_over(
        self, conversations: Iterable[Conversation], rng: random.Random
    ) -> Iterator[Conversation]:
        """Gives each conversation an adapter. It depends only on the state of rng."""
        weights = [rank**-self.zipf for rank in range(1, len(self.names) + 1)]
        for conversation in conversations:
            yield replace(conversation, adapter=rng.choices(self.names, weights)[0])


@dataclass(frozen=True, slots=True)
class Mix:
    """spread: sizes are drawn evenly within this share of the kind's, both ways; 0 keeps them exact. Every
    conversation begins with one of `prefixes` texts of shared_tokens, before the kind's own tokens."""

    kinds: Sequence[LoadKind]
    tenants: Sequence[Tenant]
    turns: int = 1
    spread: float = 0.0
    shared_tokens: int = 0
    prefixes: int = 1

    def conversations(self, rng: random.Random) -> Iterator[Conversation]:
        """Yields conversations without end; they depend only on the state of rng."""
        index = 0
        while True:
            kind = rng.choices(self.kinds, [one.part for one in self.kinds])[0]
            tenant = rng.choices(self.tenants, [one.part for one in self.tenants])[0]
            names = (f"{tenant.name}.{index}.{number}" for number in range(self.turns))
            turns = tuple(self._turn(name, number, kind, rng) for number, name in enumerate(names))
            yield Conversation(index, kind.name, tenant.name, turns)
            index += 1

    def _turn(self, name: str, number: int, kind: LoadKind, rng: random.Random) -> Turn:
        own = PromptPiece(name, self._size(kind.prompt_tokens, rng))
        output = self._size(kind.output_tokens, rng)
        if number or not self.shared_tokens:
            return Turn((own,), output)
        return Turn((PromptPiece(f"prefix{rng.randrange(self.prefixes)}", self.shared_tokens), own), output)

    def _size(self, tokens: int, rng: random.Random) -> int:
        least, most = round(tokens * (1 - self.spread)), round(tokens * (1 + self.spread))
        return max(1, rng.randint(least, most))


def of_trace(requests: Iterable[TracedRequest]) -> Iterator[Conversation]:
    """Makes each request a conversation of one turn, at its time."""
    for index, one in enumerate(requests):
        turn = Turn(tuple(_pieces(index, one)), one.output_tokens)
        yield Conversation(index, "trace", one.tenant, (turn,), one.arrived_at)


def _pieces(index: int, request: TracedRequest) -> Iterator[PromptPiece]:
    left = request.prompt_tokens
    for name in request.prefix_names:
        if left <= 0:
            return
        yield PromptPiece(f"t{name}", min(left, request.run_tokens))
        left -= request.run_tokens
    if left > 0:
        yield PromptPiece(f"c{index}", left)


def timed(conversations: Iterable[Conversation], arrivals: Iterable[float]) -> Iterator[Conversation]:
    """Gives the conversations these times; ends with the shorter one."""
    for conversation, when in zip(conversations, arrivals, strict=False):
        yield replace(conversation, starts_at=when)


def limited(
    conversations: Iterable[Conversation], count: int | None, seconds: float | None
) -> Iterator[Conversation]:
    """Yields the first `count`, and none that starts at `seconds` or later. None means no such limit."""
    for position, conversation in enumerate(conversations):
        if position == count or (seconds is not None and conversation.starts_at >= seconds):
            return
        yield conversation
