"""Pushes between simulated engines of one process: all at once, when prefill has finished."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from llmserve.core.ids import RequestId, TransferId
from llmserve.engines.kv_transfer import Finish


@dataclass(slots=True)
class Waiting:
    """A reader of a transfer. fetch: it pulls with prefill's ticket, and goes on from prefill's tokens. fail:
    nothing will come, for a reason."""

    request_id: RequestId
    fetch: Callable[[Finish], None]
    fail: Callable[[str], None]


@dataclass(slots=True)
class LocalPushes:
    """What prefill's engine and its readers have said of transfers, whichever came first."""

    _finished: dict[TransferId, Finish] = field(default_factory=dict)
    _waiting: dict[TransferId, Waiting] = field(default_factory=dict)

    def wait(self, transfer_id: TransferId, reader: Waiting) -> None:
        if finish := self._finished.pop(transfer_id, None):
            reader.fetch(finish)
        else:
            self._waiting[transfer_id] = reader

    def finish(self, transfer_id: TransferId, finish: Finish) -> None:
        if reader := self._waiting.pop(transfer_id, None):
            reader.fetch(finish)
        else:
            self._finished[transfer_id] = finish

    def drop(self, transfer_id: TransferId) -> None:
        if reader := self._waiting.pop(transfer_id, None):
            reader.fail("prefill was aborted")

    def stop(self, transfer_id: TransferId) -> Finish | None:
        """The reader is not interested any more. Returns what it would have got: its lease is to be ended."""
        if reader := self._waiting.pop(transfer_id, None):
            reader.fail("cancelled")
        return self._finished.pop(transfer_id, None)

    def forget(self, request_ids: Collection[RequestId]) -> None:
        """The leases of these prefills have ended."""
        for transfer_id in [t for t, finish in self._finished.items() if finish.request_id in request_ids]:
            del self._finished[transfer_id]

    def fail_all(self, reason: str) -> None:
        while self._waiting:
            self._waiting.popitem()[1].fail(reason)
