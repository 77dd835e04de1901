"""Simulated engines of one process in virtual time: real leases and bytes, without sockets or waiting."""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from llmserve.core.clock import Clock, VirtualClock
from llmserve.core.ids import LeaseId, RequestId, TransferId
from llmserve.core.kv_params import PullParams, PushParams
from llmserve.core.lease_table import LeaseAnswer
from llmserve.core.request import EngineLoad, KvPeer, LeaseChange
from llmserve.engines.kv_transfer import Finish, PullResult, PushChunk
from llmserve.engines.kv_transfer.leases import BlockLeases
from llmserve.engines.sim.link import KvSource
from llmserve.engines.sim.memory import Digests, KvMemory
from llmserve.engines.spec import EngineSpec


class VirtualStepTimer:
    """Lets time pass only when somebody waits for it, and then at once. It serves one engine, or several in
    turn."""

    def __init__(self) -> None:
        self._clock = VirtualClock()

    def now(self) -> float:
        return self._clock.now()

    async def sleep_until(self, when: float) -> None:
        self._clock.advance(max(0.0, when - self.now()))
        await asyncio.sleep(0)


@dataclass(slots=True)
class PushReader:
    """A decode engine that waits for a push. fetch: copies the blocks and continues after prefill's tokens.
    fail: ends the wait with a reason."""

    request_id: RequestId
    fetch: Callable[[Finish], None]
    fail: Callable[[str], None]


@dataclass(slots=True)
class LocalPushes:
    """Matches finished pushes with their readers, whichever comes first. A push copies everything at its
    end."""

    _finished: dict[TransferId, Finish] = field(default_factory=dict)
    _waiting: dict[TransferId, PushReader] = field(default_factory=dict)

    def wait(self, transfer_id: TransferId, reader: PushReader) -> None:
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
        """Removes a reader. Returns the finished push, whose lease the caller ends."""
        if reader := self._waiting.pop(transfer_id, None):
            reader.fail("cancelled")
        return self._finished.pop(transfer_id, None)

    def forget(self, request_ids: Collection[RequestId]) -> None:
        """Drops finished pushes of prefills whose leases have ended."""
        for transfer_id in [t for t, finish in self._finished.items() if finish.request_id in request_ids]:
            del self._finished[transfer_id]

    def fail_all(self, reason: str) -> None:
        while self._waiting:
            self._waiting.popitem()[1].fail(reason)


TRANSPORT = "local"


class LocalFabric:
    """The engines of one process by endpoint. SimEngine takes `open` as open_link."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._links: dict[str, LocalLink] = {}

    async def open(self, spec: EngineSpec, memory: KvMemory) -> "LocalLink":
        table = BlockLeases(spec.epoch, spec.transfer.lease_seconds, self._clock)
        link = LocalLink(f"{spec.worker_id}:{len(self._links) + 1}", self, memory, table)
        self._links[link.endpoint] = link
        return link

    def find(self, endpoint: str) -> "LocalLink | None":
        return self._links.get(endpoint)

    def forget(self, link: "LocalLink") -> None:
        self._links.pop(link.endpoint, None)


class LocalLink:
    def __init__(self, endpoint: str, fabric: LocalFabric, memory: KvMemory, table: BlockLeases) -> None:
        self.endpoint = endpoint
        self.transports: tuple[str, ...] = (TRANSPORT,)
        self.changed = asyncio.Event()
        self._fabric = fabric
        self._memory = memory
        self._table = table
        self._load = EngineLoad()
        self._pulled: list[PullResult] = []
        self._awaited: dict[RequestId, PushParams] = {}
        self.pushes = LocalPushes()

    # -- the side that owns the blocks

    def grant(self, request_id: RequestId, block_ids: Sequence[int]) -> LeaseId:
        return self._table.grant(request_id, block_ids).lease_id

    def take_ended(self) -> Sequence[RequestId]:
        ended = self._table.take_ended()
        self.pushes.forget(ended)
        return tuple(ended)

    def serve(self, ticket: PullParams, tokens: range) -> Digests | None:
        """Returns the content of leased blocks and ends the lease; None when the lease does not hold."""
        if self._table.check(ticket.lease_id, ticket.epoch) is not LeaseAnswer.VALID:
            return None
        first = tokens.start // self._memory.block_size_tokens
        content = self._memory.read(ticket.blocks.block_ids[first:], tokens)
        self.end_lease(ticket)
        return content

    def end_lease(self, ticket: PullParams) -> bool:
        ended = self._table.release(ticket.lease_id, ticket.epoch) is LeaseAnswer.VALID
        if ended:
            self.changed.set()
        return ended

    # -- the side that wants them

    def pull(self, request_id: RequestId, ticket: KvSource, tokens: range, local: Sequence[int]) -> None:
        if isinstance(ticket, PushParams):
            self._wait(request_id, ticket, tokens, local)
        else:
            self._end(self._fetched(request_id, ticket, tokens, local))

    def _wait(self, request_id: RequestId, card: PushParams, tokens: range, local: Sequence[int]) -> None:
        def fetch(finish: Finish) -> None:
            del self._awaited[request_id]
            result = self._fetched(request_id, finish.pull_params, tokens, local)
            drawn = finish.tokens if card.continues else ()
            self._end(replace(result, tokens=drawn, pushed=result.ok))

        def fail(reason: str) -> None:
            self._awaited.pop(request_id, None)
            self._end(PullResult(request_id, reason))

        self._awaited[request_id] = card
        if owner := self._fabric.find(card.endpoints[0]):
            owner.pushes.wait(card.transfer_id, PushReader(request_id, fetch, fail))
        else:
            fail("the prefill engine is gone")

    def _end(self, result: PullResult) -> None:
        self._pulled.append(result)
        self.changed.set()

    def _fetched(
        self, request_id: RequestId, ticket: PullParams, tokens: range, local: Sequence[int]
    ) -> PullResult:
        owner = self._fabric.find(ticket.endpoints[0])
        content = owner.serve(ticket, tokens) if owner else None
        if content is not None:
            self._memory.write(local, tokens, content)
            moved = self._load.transferred_bytes + content.nbytes
            self._load = replace(self._load, transferred_bytes=moved, last_transport=TRANSPORT)
            return PullResult(request_id, transport=TRANSPORT, bytes=content.nbytes)
        self._load = replace(self._load, transfer_failures=self._load.transfer_failures + 1)
        return PullResult(request_id, "the lease has ended" if owner else "the prefill engine is gone")

    def take_pulled(self) -> Sequence[PullResult]:
        pulled, self._pulled = self._pulled, []
        return pulled

    def cancel(self, request_id: RequestId) -> None:
        """Ends the wait for a push. Pulls are complete when `pull` returns."""
        if card := self._awaited.get(request_id):
            self.release(card)

    def watch(self, ticket: KvSource) -> None:
        """Does nothing: virtual time passes only while an engine works."""

    def set_peers(self, peers: Sequence[KvPeer]) -> None:
        """Does nothing: all engines are in this process."""

    def release(self, ticket: KvSource) -> None:
        owner = self._fabric.find(ticket.endpoints[0])
        if owner is None:
            return
        if isinstance(ticket, PullParams):
            owner.end_lease(ticket)
        elif finish := owner.pushes.stop(ticket.transfer_id):
            owner.end_lease(finish.pull_params)

    # -- the side that pushes

    def announce(self, transfer_id: TransferId) -> None:
        """Does nothing: a reader that came first waits already."""

    def computed(self, chunk: PushChunk) -> None:
        """Does nothing: everything is copied at the end, which takes no time."""

    def finish(self, transfer_id: TransferId, finish: Finish) -> None:
        self.pushes.finish(transfer_id, finish)

    def drop(self, transfer_id: TransferId) -> None:
        self.pushes.drop(transfer_id)

    # -- reports

    def take_changes(self) -> Sequence[LeaseChange]:
        return self._table.take_changes()

    def load(self) -> EngineLoad:
        table = self._table
        return replace(self._load, leased_blocks=table.leased_blocks, orphan_blocks=table.orphan_blocks)

    def close(self) -> None:
        self._fabric.forget(self)
        self.pushes.fail_all("the prefill engine is gone")
