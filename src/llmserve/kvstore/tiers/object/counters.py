"""What a tier has done since it was made: for the metrics of who owns it."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from llmserve.kvstore.tiers.base import Outcome
from llmserve.kvstore.tiers.object.trouble import Trouble


class Operation(StrEnum):
    GET = "get"
    PUT = "put"
    LIST = "list"
    DELETE = "delete"


@dataclass(slots=True)
class Counters:
    """requests: those that went well. troubles: those that did not, after their retries. retries: attempts
    that failed and were followed by another. blobs_*: answers to the caller."""

    requests: Counter[Operation] = field(default_factory=Counter)
    troubles: Counter[tuple[Operation, Trouble]] = field(default_factory=Counter)
    retries: Counter[tuple[Operation, Trouble]] = field(default_factory=Counter)
    blobs_read: Counter[Outcome] = field(default_factory=Counter)
    blobs_written: Counter[Outcome] = field(default_factory=Counter)
    bytes_read: int = 0
    bytes_written: int = 0
    packs_vanished: int = 0
    packs_damaged: int = 0
    packs_rewritten: int = 0
    packs_deleted: int = 0
