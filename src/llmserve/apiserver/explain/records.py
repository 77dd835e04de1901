"""The records of the latest requests, within a number and a size."""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain, count, islice, takewhile
from operator import itemgetter
from typing import Any

import msgspec

from llmserve.apiserver.explain.record import HttpRecord, RecordHandle, detached
from llmserve.apiserver.explain.view import row, view
from llmserve.core.errors import InvalidRequest, LLMServeError, NotFound
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.leader import RouterAddresses, explain_request, list_requests

MAX_BYTES = 64 * 2**20
_OVERHEAD_BYTES = 600  # of the objects around a packed record, its ids in the index included
_FIRST_ERROR_STATUS = 400
_DIGITS = 19  # of a number that fits into 64 bits, and one more
_MOST_OF_OTHERS = 500  # rows that one answer carries through the router
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(HttpRecord).decode


@dataclass(slots=True)
class _RecordEntry:
    """record: set while it is open. packed: set from then on. closed: the number of its end; 0: it is open.
    ids: those of the record."""

    tenant: str
    ids: list[str]
    record: HttpRecord | None
    packed: bytes = b""
    closed: int = 0

    @property
    def size_bytes(self) -> int:
        return len(self.packed) + _OVERHEAD_BYTES

    def unpacked(self) -> HttpRecord:
        return self.record or _decode(self.packed)


class RequestRecords:
    """limit_requests: number of ended requests to remember, besides all that run; 0: none at all. max_bytes:
    size of the records that have ended."""

    def __init__(self, limit_requests: int, max_bytes: int = MAX_BYTES) -> None:
        self._limit_requests, self._max_bytes = limit_requests, max_bytes
        self._numbers, self._ends = count(), count(1)
        self._running: dict[int, _RecordEntry] = {}
        self._ended: dict[int, _RecordEntry] = {}  # the oldest first
        self._by_id: dict[str, list[int]] = {}  # the oldest first
        self.size_bytes = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} running={len(self._running)} ended={len(self._ended)}>"

    def __len__(self) -> int:
        return len(self._running) + len(self._ended)

    def set_limit(self, requests: int) -> None:
        self._limit_requests = requests
        self._forget_old()

    def open(self, request_id: str, tenant: str, path: str) -> RecordHandle:
        """request_id: x-request-id, which clients may choose, so that several requests may have the same."""
        if self._limit_requests == 0:
            return detached()
        number = next(self._numbers)
        record = HttpRecord([request_id], tenant, path)
        self._running[number] = _RecordEntry(tenant, record.ids, record)
        self._index(request_id, number)
        return RecordHandle(record, lambda name: self._index(name, number), lambda: self._close(number))

    def find(self, request_id: str, tenant: str = "") -> HttpRecord | None:
        """Returns the latest record of this id, and of this tenant if one is named."""
        for number in reversed(self._by_id.get(request_id, ())):
            entry = self._running.get(number) or self._ended[number]
            if tenant in ("", entry.tenant):
                return entry.unpacked()
        return None

    def latest(self, tenant: str, after: int, limit: int) -> tuple[list[tuple[int, HttpRecord]], int]:
        """Returns all that run, and those that ended after a look before, the latest first, at most `limit`;
        each with its number. tenant: whose; empty: everybody's. after: what this returned last, second: what
        the next look is to begin after; 0: there was none."""
        ended = takewhile(lambda one: one[1].closed > after, reversed(self._ended.items()))
        running = reversed(self._running.items())
        own = (
            (number, entry.unpacked())
            for number, entry in chain(running, ended)
            if tenant in ("", entry.tenant)
        )
        last = next(reversed(self._ended.values()), None)
        return list(islice(own, limit)), max(after, last.closed if last else 0)

    def check_integrity(self) -> None:
        """Raises AssertionError when the index or the size is not that of what is kept."""
        everything = self._running | self._ended
        indexed = {(name, number) for name, numbers in self._by_id.items() for number in numbers}
        assert indexed == {(name, number) for number, entry in everything.items() for name in entry.ids}, self
        assert self.size_bytes == sum(entry.size_bytes for entry in self._ended.values()), self

    # -- parts

    def _index(self, name: str, number: int) -> None:
        self._by_id.setdefault(name, []).append(number)

    def _close(self, number: int) -> None:
        entry = self._running.pop(number)
        if entry.record is None or not _is_worth_keeping(entry.record):
            self._forget(number, entry)
            return
        try:
            packed = _encode(entry.record)
        except Exception:
            self._forget(number, entry)
            raise
        entry.packed, entry.record, entry.closed = packed, None, next(self._ends)
        self._ended[number] = entry
        self.size_bytes += entry.size_bytes
        self._forget_old()

    def _forget_old(self) -> None:
        while len(self._ended) > self._limit_requests or self.size_bytes > self._max_bytes:
            number = next(iter(self._ended))
            entry = self._ended.pop(number)
            self.size_bytes -= entry.size_bytes
            self._forget(number, entry)

    def _forget(self, number: int, entry: _RecordEntry) -> None:
        for name in entry.ids:
            numbers = self._by_id[name]
            numbers.remove(number)
            if not numbers:
                del self._by_id[name]


def _is_worth_keeping(record: HttpRecord) -> bool:
    """Requests that generate nothing, such as `/tokenize`, are kept only when they failed."""
    return bool(record.sequences) or record.status >= _FIRST_ERROR_STATUS


def parse_after(text: str) -> dict[str, int]:
    """Reads what `after_text` has written. Errors: InvalidRequest."""
    pairs = [one.rpartition(":") for one in text.split(",") if one]
    if not all(instance and number.isdecimal() and len(number) < _DIGITS for instance, _, number in pairs):
        raise InvalidRequest("after: give what the last answer had", field="after")
    return {instance: int(number) for instance, _, number in pairs}


def after_text(after: Mapping[str, int]) -> str:
    return ",".join(f"{instance}:{number}" for instance, number in sorted(after.items()))


def _merged(
    own: Mapping[str, Any], others: router_pb2.ListRequestsResponse, after: Mapping[str, int]
) -> dict[str, Any]:
    """after: of instances that did not answer, so that they are asked for what follows."""
    answers = [own, *map(json.loads, others.answers)]
    rows = sorted(chain(*(one["requests"] for one in answers)), key=itemgetter("came_at"), reverse=True)
    names = {one["instance"].partition("@")[0] for one in answers}
    silent = {instance: n for instance, n in after.items() if instance.partition("@")[0] not in names}
    return {"requests": rows, "after": silent | {one["instance"]: one["after"] for one in answers}}


class RecordFinder:
    """apiserver: the name of this one. routers: the one that leads asks the others. An instance is an
    apiserver from its start to its end: another start numbers its requests anew."""

    def __init__(self, records: RequestRecords, apiserver: str, routers: RouterAddresses) -> None:
        self._records, self._apiserver, self._routers = records, apiserver, routers
        self._instance = f"{apiserver}@{secrets.token_hex(3)}"

    def rows_here(self, question: router_pb2.RowsQuestion) -> bytes:
        """Returns as JSON what _rows returns."""
        return json.dumps(self._rows(question)).encode()

    async def rows_anywhere(self, tenant: str, after: Mapping[str, int], limit: int) -> dict[str, Any]:
        """Returns rows of the latest requests of all apiservers, the latest first. after: by instance, what
        the last answer said. problem: why some may be missing."""
        own = self._rows(router_pb2.RowsQuestion(tenant=tenant, after=after, limit=limit))
        asked = router_pb2.RowsQuestion(tenant=tenant, after=after, limit=min(limit, _MOST_OF_OTHERS))
        problem, others = None, router_pb2.ListRequestsResponse()
        try:
            others = await list_requests(self._routers, self._apiserver, asked)
            if others.silent:
                problem = f"no answer from {', '.join(others.silent)}"
        except LLMServeError as error:
            problem = f"requests of other apiservers are not known now: {error.message}"
        return {"apiserver": self._apiserver, "problem": problem, **_merged(own, others, after)}

    def _rows(self, question: router_pb2.RowsQuestion) -> dict[str, Any]:
        found, following = self._records.latest(
            question.tenant, question.after.get(self._instance, 0), question.limit
        )
        rows = [{"instance": self._instance, "number": number, **row(record)} for number, record in found]
        return {"instance": self._instance, "requests": rows, "after": following}

    def find_here(self, question: router_pb2.RecordQuestion) -> bytes:
        """JSON. Errors: NotFound."""
        record = self._records.find(question.request_id, question.tenant)
        if record is None:
            raise NotFound(f"{self._apiserver} remembers no request {question.request_id}")
        return json.dumps(view(record, self._apiserver)).encode()

    async def find_anywhere(self, question: router_pb2.RecordQuestion) -> bytes:
        """JSON. Errors: NotFound, Unavailable."""
        try:
            return self.find_here(question)
        except NotFound:
            return await explain_request(self._routers, question.request_id, question.tenant)
