"""The record of one HTTP request. Written by the request itself, so every step is an assignment or two;
what it means in words is made when somebody asks (view.py). Times are on the monotonic clock."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from llmserve.core.adapters import BASE_MODEL, AdapterLoad, NamedAdapter
from llmserve.core.ids import AdapterDigest
from llmserve.core.request import Acceptance, HandoverReport, Outcome, PrefillStats
from llmserve.rpc.gen.llmserve.v1 import router_pb2


@dataclass(slots=True)
class AttemptRecord:
    """One placement that was asked for, and its result. report: the serialized PlacementReport. prefill,
    decode: worker ids. failed_worker, error: why the attempt failed; empty if it did not."""

    asked_at: float
    placed_at: float = 0.0
    queue_seconds: float = 0.0
    report: bytes = b""
    prefill: str = ""
    decode: str = ""
    failed_worker: str = ""
    error: str = ""


@dataclass(slots=True)
class SequenceRecord:
    """One sequence: a choice of an answer. first_token_from: "prefill", "decode" or "aggregated".
    decode_started_at: when decode's first output of a handed-over prompt came; 0: it has not. adapter:
    the name that was asked for, and the version that it runs on; empty for the model itself. adapter_loads:
    how that came into a device slot for each leg. acceptance: of the leg that ended the answer; None: nothing
    was proposed, or the answer was cut at a stop string."""

    request_id: str = ""
    started_at: float = 0.0
    first_token_at: float = 0.0
    decode_started_at: float = 0.0
    ended_at: float = 0.0
    first_token_from: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    device_cached_tokens: int = 0
    store_cached_tokens: int = 0
    attempts: list[AttemptRecord] = field(default_factory=list)
    handovers: list[HandoverReport] = field(default_factory=list)
    adapter: str = ""
    adapter_version: AdapterDigest = BASE_MODEL
    adapter_loads: list[tuple[str, AdapterLoad]] = field(default_factory=list)
    acceptance: Acceptance | None = None
    outcome: str = ""
    error: str = ""

    def asked(self) -> None:
        self.attempts.append(AttemptRecord(time.monotonic()))

    def placed(self, placed: router_pb2.Placed) -> None:
        """Notes the router's answer to the last attempt."""
        attempt, placement = self.attempts[-1], placed.placement
        attempt.placed_at = time.monotonic()
        attempt.queue_seconds = placed.queue_seconds
        attempt.report = placed.report.SerializeToString()
        attempt.prefill, attempt.decode = placement.prefill.worker_id, placement.decode.worker_id

    def worker_failed(self, worker_id: str, error: str) -> None:
        self.attempts[-1].failed_worker, self.attempts[-1].error = worker_id, error

    def started(self, at: float) -> None:
        self.started_at = at

    def first_token(self, at: float, origin: str, prompt_tokens: int, stats: PrefillStats) -> None:
        self.first_token_at, self.first_token_from, self.prompt_tokens = at, origin, prompt_tokens
        self.device_cached_tokens = stats.local_cached_tokens
        self.store_cached_tokens = stats.external_cached_tokens

    def handed_over(self, report: HandoverReport) -> None:
        """Notes how the KV came, when decode's first output does."""
        self.handovers.append(report)
        self.decode_started_at = time.monotonic()

    def ended(self, at: float, outcome: Outcome, output_tokens: int) -> None:
        self.ended_at, self.outcome, self.output_tokens = at, outcome.value, output_tokens


@dataclass(slots=True)
class HttpRecord:
    """ids: x-request-id, then the ids that responses have. model: that which serves it; empty: it was refused
    before one was chosen. status: of HTTP; 0: none was sent. trace_id: empty when tracing is off."""

    ids: list[str] = field(default_factory=list)
    tenant: str = ""
    path: str = ""
    model: str = ""
    started_unix: float = field(default_factory=time.time)
    started_at: float = field(default_factory=time.monotonic)
    ended_at: float = 0.0
    status: int = 0
    error: str = ""
    sequences: list[SequenceRecord] = field(default_factory=list)
    trace_id: str = ""


class RecordHandle:
    """Holds a record open until HTTP and each sequence have ended; then it is closed, once."""

    def __init__(
        self,
        record: HttpRecord,
        on_named: Callable[[str], None] = lambda name: None,
        on_closed: Callable[[], None] = lambda: None,
    ) -> None:
        self.record = record
        self._on_named, self._on_closed = on_named, [on_closed]
        self._open_parts = 1  # HTTP

    def known_as(self, request_id: str) -> None:
        """The id that a response has. A completion numbers its prompts: its response has the id without."""
        base, _, number = request_id.rpartition("-")
        name = base if request_id.startswith("cmpl-") and number.isdigit() else request_id
        if name not in self.record.ids:
            self.record.ids.append(name)
            self._on_named(name)

    def sequence(self, request_id: str, adapter: NamedAdapter | None = None) -> SequenceRecord:
        """Adds a sequence; `part_ended` ends it."""
        self._open_parts += 1
        sequence = SequenceRecord(request_id, time.monotonic())
        if adapter is not None:
            sequence.adapter, sequence.adapter_version = adapter.name, adapter.digest
        self.record.sequences.append(sequence)
        return sequence

    def part_ended(self) -> None:
        """Called once for each sequence, and once for HTTP."""
        self._open_parts -= 1
        if self._open_parts == 0:
            self.record.ended_at = time.monotonic()
            for call in self._on_closed:
                call()

    def when_closed(self, call: Callable[[], None]) -> None:
        """Adds a callback. Called before the first part has ended."""
        self._on_closed.insert(0, call)


def detached() -> RecordHandle:
    """Returns a handle of a record that is not kept."""
    return RecordHandle(HttpRecord())
