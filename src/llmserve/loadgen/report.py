"""What a run has shown: latencies, throughput, failures, and how fairly tenants were served."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmserve.core.errors import InvalidRequest
from llmserve.core.stats import Percentiles, jain
from llmserve.loadgen.answer import LoadRecord


@dataclass(frozen=True, slots=True)
class Fairness:
    """tokens: tokens of each tenant, prompts and answers, in contended seconds: those at whose beginning and
    end requests of every tenant waited for their first token. jain: Jain's index of tokens by weight; None
    when there were no such seconds, or one tenant. Shares mean nothing while there is enough for all."""

    contended_seconds: int
    tokens: dict[str, int]
    jain: float | None


def fairness(records: Sequence[LoadRecord], weights: Mapping[str, float]) -> Fairness:
    tenants = sorted({record.tenant for record in records})
    contended = _contended(records, tenants) if len(tenants) > 1 else set()
    tokens = dict.fromkeys(tenants, 0)
    for record in records:
        tokens[record.tenant] += sum(n for second, n in _arrivals(record) if second in contended)
    index = jain(tokens[one] / weights.get(one, 1.0) for one in tenants) if contended else None
    return Fairness(len(contended), tokens, index)


def _contended(records: Iterable[LoadRecord], tenants: Sequence[str]) -> set[int]:
    """The numbers of the contended seconds; second i is from i to i + 1."""
    waiting: dict[int, set[str]] = defaultdict(set)
    for record in records:
        until = record.first_at if record.has_tokens else record.ended_at
        for instant in range(math.ceil(record.sent_at), math.floor(until) + 1):
            waiting[instant].add(record.tenant)
    everyone = set(tenants)
    full = {instant for instant, some in waiting.items() if some == everyone}
    return {instant for instant in full if instant + 1 in full}


def _arrivals(record: LoadRecord) -> Iterable[tuple[int, int]]:
    """Yields seconds and tokens. Prompt tokens count when the first token comes; answer tokens are spread
    evenly over their arrivals."""
    if not record.has_tokens:
        return []
    seconds = Counter([int(record.first_at)])
    now = record.first_at
    for gap in record.gaps:
        now += gap
        seconds[int(now)] += 1
    arrivals = len(record.gaps) + 1
    got = {second: round(record.output_tokens * n / arrivals) for second, n in seconds.items()}
    got[int(record.first_at)] += record.prompt_tokens
    return got.items()


# Requests that leave this late measure this process as well, not only the endpoint.
_LATE_SECONDS = 0.010
_OTHER_LENGTH = 0.02


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits in seconds that a good request meets: to its first token, for each later token on average, and
    in all. None is no limit."""

    ttft: float | None = None
    itl: float | None = None
    e2e: float | None = None

    @classmethod
    def parse(cls, text: str) -> "Slo":
        """Reads `ttft=1,itl=0.05`. Errors: InvalidRequest."""
        given: dict[str, float] = {}
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            try:
                given[name] = float(value)
            except ValueError:
                given[name] = 0.0
            if name not in cls.__slots__ or not 0 < given[name] < float("inf"):
                raise InvalidRequest(f"--slo {part!r}: write ttft=S, itl=S or e2e=S with seconds")
        return cls(**given)

    @property
    def asks(self) -> bool:
        return (self.ttft, self.itl, self.e2e) != (None, None, None)

    def met(self, record: LoadRecord) -> bool:
        pairs = ((record.ttft, self.ttft), (record.tpot or 0.0, self.itl), (record.e2e, self.e2e))
        return record.served and all(limit is None or value <= limit for value, limit in pairs)


@dataclass(frozen=True, slots=True)
class About:
    """What the figures describe. started_at: ISO 8601 time. notes: sentences about what is only approximately
    right."""

    url: str
    model: str
    load: str
    seed: int
    prompts: str
    started_at: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failures:
    """Requests that failed alike. message: the first one's."""

    label: str
    count: int
    message: str


@dataclass(frozen=True, slots=True)
class Group:
    """Requests of one kind or tenant, or first or later uses of adapters. Percentiles are in seconds and of
    served requests."""

    name: str
    requests: int
    served: int
    good: int
    prompt_tokens: int
    output_tokens: int
    ttft: Percentiles
    tpot: Percentiles
    e2e: Percentiles


@dataclass(frozen=True, slots=True)
class LoadReport:
    """seconds: time to the end of the last request. Percentiles are in seconds and of served requests. itl:
    time between arrivals of tokens, over all requests. tpot: a request's mean time per token after the first.
    late: delay of sending, which ttft and e2e contain. cached_tokens: cached prompt tokens, as the endpoint
    counts. good: requests that met the slo."""

    about: About
    seconds: float
    requests: int
    served: int
    good: int
    failures: tuple[Failures, ...]
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    requests_per_second: float
    good_per_second: float
    output_tokens_per_second: float
    total_tokens_per_second: float
    ttft: Percentiles
    itl: Percentiles
    tpot: Percentiles
    e2e: Percentiles
    late: Percentiles
    slo: Slo
    kinds: tuple[Group, ...]
    tenants: tuple[Group, ...]
    adapters: tuple[Group, ...]
    fairness: Fairness
    notes: tuple[str, ...]

    @property
    def spreads(self) -> Mapping[str, Percentiles]:
        """The percentiles by the names that they have on pages."""
        return {
            "time to first token": self.ttft,
            "between tokens": self.itl,
            "per output token": self.tpot,
            "end to end": self.e2e,
            "sent late": self.late,
        }


def make_report(
    records: Sequence[LoadRecord], about: About, slo: Slo, weights: Mapping[str, float]
) -> LoadReport:
    all_of_it = _group("all", records, slo)
    served = [record for record in records if record.served]
    seconds = max((record.ended_at for record in records), default=0.0)
    late = Percentiles.of([record.sent_at - record.planned_at for record in records])
    return LoadReport(
        about=about,
        seconds=seconds,
        requests=len(records),
        served=len(served),
        good=all_of_it.good,
        failures=_failures(records),
        prompt_tokens=all_of_it.prompt_tokens,
        cached_tokens=sum(record.cached_tokens for record in served),
        output_tokens=all_of_it.output_tokens,
        requests_per_second=_rate(len(served), seconds),
        good_per_second=_rate(all_of_it.good, seconds),
        output_tokens_per_second=_rate(all_of_it.output_tokens, seconds),
        total_tokens_per_second=_rate(all_of_it.prompt_tokens + all_of_it.output_tokens, seconds),
        ttft=all_of_it.ttft,
        itl=Percentiles.of([gap for record in served for gap in record.gaps]),
        tpot=all_of_it.tpot,
        e2e=all_of_it.e2e,
        late=late,
        slo=slo,
        kinds=_groups(records, lambda record: record.kind, slo),
        tenants=_groups(records, lambda record: record.tenant, slo),
        adapters=_by_temperature(records, slo),
        fairness=fairness(records, weights),
        notes=(*about.notes, *_notes(served, late)),
    )


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds else 0.0


def _groups(
    records: Sequence[LoadRecord], name_of: Callable[[LoadRecord], str], slo: Slo
) -> tuple[Group, ...]:
    names = sorted({name_of(record) for record in records})
    return tuple(_group(name, [one for one in records if name_of(one) == name], slo) for name in names)


FIRST_USE, LATER_USE = "first use", "later use"
"""The groups of requests with adapters."""


def _by_temperature(records: Sequence[LoadRecord], slo: Slo) -> tuple[Group, ...]:
    """A first use was sent before any request of its adapter had a token in this run. A later use may have to
    load its adapter all the same, where there are more adapters than slots."""
    with_adapter = [record for record in records if record.adapter]
    used_at: dict[str, float] = {}
    for record in with_adapter:
        if record.has_tokens:
            used_at[record.adapter] = min(record.first_at, used_at.get(record.adapter, math.inf))

    def temperature(record: LoadRecord) -> str:
        return FIRST_USE if record.sent_at <= used_at.get(record.adapter, math.inf) else LATER_USE

    return _groups(with_adapter, temperature, slo)


def _group(name: str, records: Sequence[LoadRecord], slo: Slo) -> Group:
    served = [record for record in records if record.served]
    return Group(
        name=name,
        requests=len(records),
        served=len(served),
        good=sum(slo.met(record) for record in records),
        prompt_tokens=sum(record.prompt_tokens for record in served),
        output_tokens=sum(record.output_tokens for record in served),
        ttft=Percentiles.of([record.ttft for record in served]),
        tpot=Percentiles.of([record.tpot for record in served if record.tpot is not None]),
        e2e=Percentiles.of([record.e2e for record in served]),
    )


def _failures(records: Sequence[LoadRecord]) -> tuple[Failures, ...]:
    """The failures, the most frequent first."""
    found: dict[str, list[str]] = {}
    for record in records:
        if record.failure is not None:
            found.setdefault(record.failure.label, []).append(record.failure.message)
    lines = [Failures(label, len(messages), messages[0]) for label, messages in found.items()]
    return tuple(sorted(lines, key=lambda line: -line.count))


def _notes(served: Sequence[LoadRecord], late: Percentiles) -> list[str]:
    notes = []
    if late.p99 > _LATE_SECONDS:
        notes.append(
            f"1% of the requests were sent more than {1000 * late.p99:.0f} ms late: this machine is too busy "
            "for this load, and the figures contain it"
        )
    shorter = sum(record.output_tokens != record.wanted_output_tokens for record in served)
    if shorter:
        notes.append(f"{shorter} answers were not of the wanted length")
    wanted = sum(record.wanted_prompt_tokens for record in served)
    counted = sum(record.prompt_tokens for record in served)
    if wanted and abs(counted / wanted - 1) > _OTHER_LENGTH:
        notes.append(f"prompts had {counted} tokens as the endpoint counts, and {wanted} were wanted")
    return notes
