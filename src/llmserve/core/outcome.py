"""How a request ends. The apiserver counts one outcome for each request."""

from enum import StrEnum


class Outcome(StrEnum):
    COMPLETED = "completed"
    CANCELLED = "cancelled"  # the client went away
    REJECTED = "rejected"  # before the queue
    EVICTED = "evicted"  # after the queue, before a placement
    FAILED = "failed"


class WorkerRole(StrEnum):
    PREFILL = "prefill"
    DECODE = "decode"
    AGGREGATED = "aggregated"


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORT = "abort"
    ERROR = "error"
    REPETITION = "repetition"
