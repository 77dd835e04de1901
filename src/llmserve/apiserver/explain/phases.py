"""Where the time of a sequence went: phases that follow each other without a gap, from the moment at which
the request came to its end. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest

from llmserve.apiserver.explain.record import SequenceRecord
from llmserve.core.request import Outcome


class PhaseName(StrEnum):
    PREPARE = "prepare"  # the body is read and becomes tokens
    QUEUE = "queue"  # the router looks for a place
    PREFILL = "prefill"  # the prompt is computed, or loaded; ends with the first token
    HAND_OVER = "hand-over"  # the KV comes to decode; ends with decode's first token
    DECODE = "decode"
    RETRY = "retry"  # of an attempt on a worker that failed
    FINISH = "finish"  # the last bytes go to the client, or other sequences go on


@dataclass(frozen=True, slots=True)
class TimePhase:
    """begin, end: on the monotonic clock."""

    name: PhaseName
    begin: float
    end: float


def phases(sequence: SequenceRecord, came_at: float, ended_at: float) -> list[TimePhase]:
    """came_at, ended_at: of the HTTP request; of one that runs, the present moment."""
    found: list[TimePhase] = []
    begin = came_at
    for name, at in _ends(sequence, ended_at):
        end = min(max(begin, at), ended_at)
        if end > begin:
            found.append(TimePhase(name, begin, end))
        begin = end
    return found


def _ends(sequence: SequenceRecord, ended_at: float) -> Iterator[tuple[PhaseName, float]]:
    """Yields when each phase ended, or would end if the request ended now. Attempts that follow tokens are
    part of decode."""
    first, over = sequence.first_token_at, sequence.ended_at or ended_at
    attempts = [one for one in sequence.attempts if not first or one.asked_at < first]
    yield PhaseName.PREPARE, attempts[0].asked_at if attempts else over
    for attempt, following in zip_longest(attempts, attempts[1:]):
        yield PhaseName.QUEUE, attempt.placed_at or over
        if following is not None:
            yield PhaseName.RETRY, following.asked_at
    yield from _computed(sequence, over) if first else [(PhaseName.PREFILL, over)]
    yield PhaseName.FINISH, ended_at


def _computed(sequence: SequenceRecord, over: float) -> Iterator[tuple[PhaseName, float]]:
    """over: when the sequence ended."""
    first = sequence.first_token_at
    if sequence.first_token_from == "decode" and sequence.handovers:  # it draws prefill's token again
        yield PhaseName.PREFILL, first - sequence.handovers[-1].seconds
        yield PhaseName.HAND_OVER, first
    else:
        yield PhaseName.PREFILL, first
    if sequence.first_token_from == "prefill":
        if sequence.decode_started_at:
            yield PhaseName.HAND_OVER, sequence.decode_started_at
        elif sequence.outcome != Outcome.COMPLETED:  # else prefill's token was the only one
            yield PhaseName.HAND_OVER, over
    yield PhaseName.DECODE, over
