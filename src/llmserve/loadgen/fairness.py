"""What each tenant got while all of them wanted more."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from llmserve.core.stats import jain
from llmserve.loadgen.record import Record


@dataclass(frozen=True, slots=True)
class Fairness:
    """tokens: of each tenant, prompts and answers, in the seconds at whose beginning and end requests of
    every tenant waited for their first token. jain: of these for their weight; None: there were none, or
    there is one tenant. Shares mean nothing while there is enough for all."""

    contended_seconds: int
    tokens: dict[str, int]
    jain: float | None


def fairness(records: Sequence[Record], weights: Mapping[str, float]) -> Fairness:
    tenants = sorted({record.tenant for record in records})
    contended = _contended(records, tenants) if len(tenants) > 1 else set()
    tokens = dict.fromkeys(tenants, 0)
    for record in records:
        tokens[record.tenant] += sum(n for second, n in _arrivals(record) if second in contended)
    index = jain(tokens[one] / weights.get(one, 1.0) for one in tenants) if contended else None
    return Fairness(len(contended), tokens, index)


def _contended(records: Iterable[Record], tenants: Sequence[str]) -> set[int]:
    """Second i is from i to i + 1."""
    waiting: dict[int, set[str]] = defaultdict(set)
    for record in records:
        until = record.first_at if record.has_tokens else record.ended_at
        for instant in range(math.ceil(record.sent_at), math.floor(until) + 1):
            waiting[instant].add(record.tenant)
    everyone = set(tenants)
    full = {instant for instant, some in waiting.items() if some == everyone}
    return {instant for instant in full if instant + 1 in full}


def _arrivals(record: Record) -> Iterable[tuple[int, int]]:
    """Seconds and tokens. Those of the prompt count when the first token comes; those of the answer are
    spread evenly over its arrivals."""
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
