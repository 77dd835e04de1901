"""llmserve.v1.KVPool: the table over gRPC. Each message is one synchronous call into the table."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

import grpc.aio

from llmserve.core.errors import InvalidRequest, LeaseEnded
from llmserve.core.ids import LeaseId
from llmserve.kvstore.pool.arena import Arena
from llmserve.kvstore.pool.slot import CommitOutcome, PoolUser
from llmserve.kvstore.pool.table import PoolTable
from llmserve.kvstore.pool.watch import ProcessWatch
from llmserve.kvstore.pool.wire import (
    decode_fills,
    decode_keys,
    decode_seconds,
    decode_wants,
    encode_answer,
    encode_reserved,
    encode_slot,
)
from llmserve.rpc.gen.llmserve.v1 import kvpool_pb2 as pb
from llmserve.rpc.gen.llmserve.v1 import kvpool_pb2_grpc
from llmserve.transfer.shm.identity import Place

_log = logging.getLogger(__name__)
_Context = grpc.aio.ServicerContext[Any, Any]


class KVPoolService(kvpool_pb2_grpc.KVPoolServicer):
    """One loop. transports: the descriptions of those that arena.region is registered with, by name.
    Life: constructor -> close (idempotent); arena and transports belong to the caller."""

    def __init__(self, arena: Arena, table: PoolTable, transports: Mapping[str, bytes] | None = None) -> None:
        self._arena, self._table = arena, table
        self._transports = dict(transports or {})
        self._watch = ProcessWatch()
        self._place = Place.here()

    def close(self) -> None:
        self._watch.close()

    def forget(self, user: PoolUser) -> None:
        """For whoever knows that a worker is gone for sure: its process has ended, or a newer incarnation
        has come, and nothing is under way in its name."""
        _log.info("pool user %s is gone", user)
        self._table.forget(user)

    async def Attach(  # noqa: N802 - the name in the proto
        self, request: pb.AttachPoolRequest, context: _Context
    ) -> pb.AttachPoolResponse:
        user = _user(request.user)
        if (request.boot_id, request.pid_namespace) == (self._place.boot_id, self._place.pid_namespace):
            self._watch.add(user, request.pid, partial(self.forget, user))
        for length in filter(None, request.block_bytes):
            self._table.slabs.expect(length)
        _log.info("pool user %s attaches", user)
        return pb.AttachPoolResponse(
            arena_id=self._arena.arena_id,
            description=self._arena.description(),
            transports=[pb.PoolTransport(name=n, description=d) for n, d in self._transports.items()],
        )

    async def Reserve(  # noqa: N802
        self, request: pb.ReserveSlotsRequest, context: _Context
    ) -> pb.ReserveSlotsResponse:
        self._check_arena(request.arena_id)
        wants, seconds = decode_wants(request), decode_seconds(request.seconds)
        reserved = self._table.reserve(_user(request.user), wants, seconds)
        return pb.ReserveSlotsResponse(slots=map(encode_reserved, reserved))

    async def Commit(  # noqa: N802
        self, request: pb.CommitSlotsRequest, context: _Context
    ) -> pb.CommitSlotsResponse:
        self._check_arena(request.arena_id)
        self._table.abort(decode_fills(request.given_up))
        outcomes = self._table.commit(decode_fills(request.written))
        return pb.CommitSlotsResponse(stored=[outcome is CommitOutcome.STORED for outcome in outcomes])

    async def Pin(  # noqa: N802
        self, request: pb.PinBlocksRequest, context: _Context
    ) -> pb.PinBlocksResponse:
        self._check_arena(request.arena_id)
        keys, seconds = decode_keys(request.keys), decode_seconds(request.seconds)
        lease_id, slots = self._table.pin(_user(request.user), keys, seconds)
        return pb.PinBlocksResponse(lease_id=lease_id, slots=map(encode_slot, slots))

    async def Renew(  # noqa: N802
        self, request: pb.RenewPinRequest, context: _Context
    ) -> pb.PinAnswerResponse:
        self._check_arena(request.arena_id)
        seconds = decode_seconds(request.seconds)
        return encode_answer(self._table.renew(LeaseId(request.lease_id), seconds))

    async def Release(  # noqa: N802
        self, request: pb.ReleasePinRequest, context: _Context
    ) -> pb.PinAnswerResponse:
        self._check_arena(request.arena_id)
        corrupt = decode_fills(request.corrupt)
        if corrupt:
            _log.warning("%d blocks of the pool are corrupt: forgotten", len(corrupt))
        self._table.remove_corrupt(corrupt)
        return encode_answer(self._table.release(LeaseId(request.lease_id)))

    async def GetPoolStatus(  # noqa: N802
        self, request: pb.GetPoolStatusRequest, context: _Context
    ) -> pb.GetPoolStatusResponse:
        usage = self._table.usage()
        return pb.GetPoolStatusResponse(
            arena_id=self._arena.arena_id,
            huge_pages=self._arena.huge_pages,
            **{name: getattr(usage, name) for name in usage.__dataclass_fields__},
        )

    def _check_arena(self, arena_id: str) -> None:
        """Errors: LeaseEnded."""
        if arena_id != self._arena.arena_id:
            raise LeaseEnded("the KV pool is another one since; attach again")


def _user(name: str) -> PoolUser:
    if not name:
        raise InvalidRequest("user is empty")
    return PoolUser(name)
