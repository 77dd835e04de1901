"""A load: which conversations are sent, and when."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from llmserve.loadgen.workload import AdapterMix, Conversation, Mix, Tenant, limited, of_trace, timed
from llmserve.traces import TracedRequest


def arrivals(per_second: float, burstiness: float, rng: random.Random) -> Iterator[float]:
    """Yields rising seconds from the start without end, 1 / per_second apart on average. burstiness is the
    coefficient of variation of the gaps: 0 is constant, 1 a Poisson process, above 1 bursts (gamma
    distributed). `vllm bench serve --burstiness` is 1 / burstiness**2."""
    mean, now = 1 / per_second, 0.0
    shape = 1 / burstiness**2 if burstiness else 0.0
    while True:
        now += rng.gammavariate(shape, mean / shape) if shape else mean
        yield now


@dataclass(frozen=True, slots=True)
class Users:
    """A number of users who talk at the same time; each takes the next conversation when the last one has
    ended."""

    count: int
    conversations: Iterator[Conversation]


_WARM_OUTPUT_TOKENS = 16  # of a request that only warms the endpoint up


@dataclass(frozen=True, slots=True)
class Load:
    """trace: replaces the mix and has its own times. rate: conversations per second (open loop); without it
    `concurrency` users talk (closed loop), divided between the tenants by their parts. count: most
    conversations; seconds: end of new ones; None means no such limit, but a mix needs one of them. adapters:
    which of them the conversations ask for; None asks for the model itself."""

    mix: Mix
    seed: int
    trace: Sequence[TracedRequest] = field(default=(), repr=False)
    rate: float | None = None
    burstiness: float = 1.0
    concurrency: int = 8
    count: int | None = None
    seconds: float | None = None
    think_seconds: float = 0.0
    adapters: AdapterMix | None = None

    @property
    def is_open(self) -> bool:
        return bool(self.trace) or self.rate is not None

    @property
    def keeps_talking(self) -> bool:
        return not self.trace and self.mix.turns > 1

    def scheduled(self) -> Iterator[Conversation]:
        """The conversations of an open loop, with their times."""
        if self.trace:
            return limited(self._adapted(of_trace(self.trace)), self.count, self.seconds)
        assert self.rate is not None, "a closed loop has no schedule"
        times = arrivals(self.rate, self.burstiness, random.Random(f"{self.seed} arrivals"))
        conversations = self.mix.conversations(random.Random(self.seed))
        return limited(timed(self._adapted(conversations), times), self.count, self.seconds)

    def users(self) -> list[Users]:
        """The users of a closed loop. Each tenant's users have conversations of their own, so that a tenant
        that is served slowly does not delay the others."""
        parts = divided(self.concurrency, [tenant.part for tenant in self.mix.tenants])
        return [
            Users(count, self._conversations_of(tenant))
            for tenant, count in zip(self.mix.tenants, parts, strict=True)
        ]

    def warming(self, count: int) -> list[Users]:
        """Short answers to prompts that the load does not contain."""
        mix = replace(
            self.mix,
            kinds=tuple(replace(kind, output_tokens=_WARM_OUTPUT_TOKENS) for kind in self.mix.kinds),
            turns=1,
            shared_tokens=0,
        )
        conversations = mix.conversations(self._random("warming"))
        return [Users(min(count, self.concurrency), map(_renamed, conversations))] if count else []

    def _conversations_of(self, tenant: Tenant) -> Iterator[Conversation]:
        mix = replace(self.mix, tenants=(tenant,))
        return self._adapted(mix.conversations(self._random(tenant.name)), tenant.name)

    def _adapted(self, conversations: Iterator[Conversation], whose: str = "") -> Iterator[Conversation]:
        """The same conversations with adapters: these are drawn apart, so prompts are as without them."""
        if self.adapters is None:
            return conversations
        return self.adapters.spread_over(conversations, self._random(f"adapters {whose}"))

    def _random(self, name: str) -> random.Random:
        return random.Random(f"{self.seed} {name}")

    def describe(self) -> str:
        """The load in one line for people."""
        return ", ".join(filter(None, (self._what(), self._adapters(), self._when(), self._until())))

    def _what(self) -> str:
        if self.trace:
            return f"a trace of {len(self.trace)} requests"
        kinds = (f"{k.name}={k.prompt_tokens}/{k.output_tokens}:{k.part:g}" for k in self.mix.kinds)
        spread = f" +-{self.mix.spread:.0%}" if self.mix.spread else ""
        shared = (
            f", {self.mix.shared_tokens} shared tokens ({self.mix.prefixes})"
            if self.mix.shared_tokens
            else ""
        )
        turns = f", {self.mix.turns} turns" if self.mix.turns > 1 else ""
        return f"mix {' '.join(kinds)}{spread}{shared}{turns}"

    def _adapters(self) -> str:
        return f"{len(self.adapters.names)} adapters, zipf {self.adapters.zipf:g}" if self.adapters else ""

    def _when(self) -> str:
        if self.trace:
            return "open loop at the trace's times"
        if self.rate is None:
            return f"closed loop of {self.concurrency} users"
        return f"open loop of {self.rate:g}/s, burstiness {self.burstiness:g}"

    def _until(self) -> str:
        limits = (
            f"{self.count} conversations" if self.count else "",
            f"{self.seconds:g} s" if self.seconds else "",
        )
        return " or ".join(filter(None, limits))


def divided(count: int, parts: Sequence[float]) -> list[int]:
    """Divides count by the parts into whole numbers of at least 1 each, so the sum may be larger."""
    total, given, taken, found = sum(parts), 0, 0.0, []
    for part in parts:
        taken += part
        found.append(max(1, round(count * taken / total) - given))
        given += found[-1]
    return found


def _renamed(conversation: Conversation) -> Conversation:
    turns = tuple(
        replace(turn, prompt=tuple(replace(piece, name=f"warm {piece.name}") for piece in turn.prompt))
        for turn in conversation.turns
    )
    return replace(conversation, turns=turns)
