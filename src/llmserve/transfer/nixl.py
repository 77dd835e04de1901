"""NIXL over UCX: one-sided reads and writes of host memory over RDMA, shared memory or TCP, as UCX chooses.

The agent runs without NIXL's progress thread, which uses a whole core while idle. So a process that is read
from must call `progress` while a reader connects, and on paths that are not one-sided also while it reads
(needs_progress).

UCX cannot take back a read: until the read completes its data may still arrive, even after the handle was
released and the peer removed (measured on UCX's TCP path with a stopped peer). So `cancel` waits for the end,
and only destroying the agent ends a read early. On that path a peer that still answers the read of a reader
that is gone may abort (an assertion in UCX, seen once in some hundred times). So an agent is destroyed only
after its reads had time to end.

NIXL's package contains a copy of libnl. UCX's InfiniBand module also loads the system's libnl, where there is
one, and the process crashes in the exit handlers of the two. So hosts without RDMA devices do not load that
module.
"""

import json
import logging
import os
import time
import uuid
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from llmserve.core.errors import TransferError, TransportUnavailable
from llmserve.transfer.base import (
    Batch,
    Memory,
    PeerName,
    Region,
    Spans,
    Transfer,
    TransferState,
    TransferStatus,
)
from llmserve.transfer.spans import RegionTable, check_batch, check_reach, coalesce_pairs

_T = TypeVar("_T")
_MEMORY = "DRAM"
_CANCEL_SECONDS = 0.02
_DRAIN_SECONDS = 0.5  # the rest of the hand-over stands still meanwhile
_RDMA_DEVICES = Path("/sys/class/infiniband")
_STATES = {"DONE": TransferState.DONE, "PROC": TransferState.RUNNING, "ERR": TransferState.FAILED}


@dataclass(eq=False, slots=True)
class _Peer:
    agent_name: str
    table: RegionTable
    transfers: int = 0
    leaving: bool = False


@dataclass(eq=False, slots=True)
class _NixlTransfer:
    peer: _Peer
    handle: Any = field(repr=False)  # None once it has ended
    status: TransferStatus


class NixlTransport:
    name = "nixl"
    needs_progress = True

    def __init__(self) -> None:
        """Errors: TransportUnavailable with the reason."""
        self._api = _load()
        self._agent: Any = self._make_agent()
        self._table = RegionTable.of(())
        self._peers: dict[PeerName, _Peer] = {}
        self._running: set[_NixlTransfer] = set()
        self._closed = False

    def reaches(self, memory: Memory) -> bool:
        return memory.on_host

    def register(self, regions: Sequence[Region]) -> None:
        self._check_open()
        check_reach(self, regions)
        if self._table.lengths:  # a new agent: no read of the old memory outlives the old agent
            self._drop_agent("the memory was registered anew")
            self._agent = self._make_agent()
        self._table = RegionTable.of(regions)
        rows = [(region.address, region.length_bytes, 0, "") for region in regions]
        _mapped("register", lambda: self._agent.register_memory(rows, _MEMORY))

    def describe(self) -> bytes:
        self._check_open()
        fields = {
            "agent": b64encode(_mapped("describe", self._agent.get_agent_metadata)).decode(),
            "addresses": self._table.addresses.tolist(),
            "lengths": self._table.lengths,
        }
        return json.dumps(fields).encode()

    def connect(self, description: bytes) -> PeerName:
        self._check_open()
        metadata, table = _parse(description)
        agent_name = _mapped("connect", lambda: self._agent.add_remote_agent(metadata))
        agent_name = agent_name.decode() if isinstance(agent_name, bytes) else str(agent_name)
        peer = self._peers.setdefault(PeerName(agent_name), _Peer(agent_name, table))
        peer.leaving = False
        _mapped("connect", lambda: self._agent.make_connection(agent_name))
        return PeerName(agent_name)

    def disconnect(self, peer: PeerName) -> None:
        if known := self._peers.get(peer):
            known.leaving = True
            self._remove_if_gone(known)

    def read(self, peer: PeerName, batch: Batch) -> Transfer:
        return self._start("READ", peer, batch)

    def write(self, peer: PeerName, batch: Batch) -> Transfer:
        return self._start("WRITE", peer, batch)

    def poll(self, transfer: Transfer) -> TransferStatus:
        assert isinstance(transfer, _NixlTransfer), "a transfer of this transport"
        if transfer.handle is not None:
            try:
                state = _STATES[self._agent.check_xfer_state(transfer.handle)]
                transfer.status = TransferStatus(state, _reason_of(state))
            except Exception as error:
                transfer.status = TransferStatus(TransferState.FAILED, _describe(error))
            if transfer.status.state is not TransferState.RUNNING:
                self._end(transfer)
        return transfer.status

    def progress(self) -> None:
        _mapped("progress", self._agent.get_new_notifs)

    def cancel(self, transfer: Transfer) -> None:
        deadline = time.monotonic() + _CANCEL_SECONDS
        while self.poll(transfer).state is TransferState.RUNNING:
            if time.monotonic() > deadline:
                raise TransferError("nixl: the data may still arrive")
            time.sleep(0.0005)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._drop_agent("the transport was closed")

    # -- inside

    def _make_agent(self) -> Any:
        config = self._api.nixl_agent_config(enable_prog_thread=False, backends=["UCX"])
        try:
            agent = self._api.nixl_agent(str(uuid.uuid4()), config)
        except Exception as error:
            raise TransportUnavailable(f"nixl: no agent: {_describe(error)}") from error
        if "UCX" not in agent.backends:
            raise TransportUnavailable("nixl: this build has no UCX backend")
        return agent

    def _drop_agent(self, reason: str) -> None:
        """Ends all transfers: without the agent nothing reads or writes the memory of this process."""
        self._drain()
        for transfer in list(self._running):
            transfer.status = TransferStatus(TransferState.FAILED, f"nixl: {reason}")
            self._end(transfer)
        for peer in list(self._peers.values()):
            peer.leaving = True
            self._remove_if_gone(peer)
        self._agent = None

    def _drain(self) -> None:
        """Waits for the transfers in flight, at most _DRAIN_SECONDS."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        while time.monotonic() < deadline:
            states = [self.poll(transfer).state for transfer in list(self._running)]
            if TransferState.RUNNING not in states:
                return
            time.sleep(0.0005)

    def _start(self, operation: str, name: PeerName, batch: Batch) -> _NixlTransfer:
        self._check_open()
        peer = self._peers.get(name)
        if peer is None or peer.leaving:
            raise TransferError(f"nixl: not connected to {name}")
        check_batch(batch, self._table.lengths, peer.table.lengths)
        joined = coalesce_pairs(batch)
        if not len(joined.local.lengths):
            return _NixlTransfer(peer, None, TransferStatus(TransferState.DONE))
        handle = _mapped(operation, lambda: self._prepare(operation, peer, joined))
        peer.transfers += 1
        transfer = _NixlTransfer(peer, handle, TransferStatus(TransferState.RUNNING))
        self._running.add(transfer)
        try:
            self._agent.transfer(handle)
        except Exception as error:
            self._end(transfer)
            raise TransferError(f"nixl: {operation}: {_describe(error)}") from error
        return transfer

    def _prepare(self, operation: str, peer: _Peer, batch: Batch) -> Any:
        local = self._agent.get_xfer_descs(_descriptors(self._table, batch.local), _MEMORY)
        remote = self._agent.get_xfer_descs(_descriptors(peer.table, batch.remote), _MEMORY)
        return self._agent.initialize_xfer(operation, local, remote, peer.agent_name)

    def _end(self, transfer: _NixlTransfer) -> None:
        handle, transfer.handle = transfer.handle, None
        self._running.discard(transfer)
        transfer.peer.transfers -= 1
        _quietly(lambda: self._agent.release_xfer_handle(handle))
        self._remove_if_gone(transfer.peer)

    def _remove_if_gone(self, peer: _Peer) -> None:
        """Removes a peer once its transfers have ended: the state of a transfer needs its peer."""
        name = PeerName(peer.agent_name)
        if peer.leaving and not peer.transfers and self._peers.get(name) is peer:
            del self._peers[name]
            _quietly(lambda: self._agent.remove_remote_agent(peer.agent_name))

    def _check_open(self) -> None:
        if self._closed:
            raise TransferError("nixl: the transport is closed")


def _descriptors(table: RegionTable, spans: Spans) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint64]]":
    """Returns rows of address, length and device 0."""
    rows = np.zeros((len(spans.lengths), 3), dtype=np.uint64)
    rows[:, 0], rows[:, 1] = table.starts(spans), spans.lengths
    return rows


def _load() -> ModuleType:
    """Imports NIXL's Python API, which loads UCX libraries of its own, only when it is needed."""
    os.environ.setdefault("UCX_RCACHE_MAX_UNRELEASED", "1024")  # UCX's registration cache leaks otherwise
    if not (_RDMA_DEVICES.is_dir() and any(_RDMA_DEVICES.iterdir())):
        os.environ.setdefault("UCX_MODULES", "^ib")
    raise_exceptions = logging.raiseExceptions
    try:
        import nixl._api as api
    except (ImportError, OSError) as error:
        raise TransportUnavailable(f"nixl: cannot be imported: {_describe(error)}") from error
    logging.raiseExceptions = raise_exceptions  # NIXL disables it for the whole process
    log = logging.getLogger("nixl")  # it writes to stdout, where our logs are not
    log.handlers.clear()
    log.propagate = True
    module: ModuleType = api
    return module


def _parse(description: bytes) -> tuple[bytes, RegionTable]:
    try:
        fields = json.loads(description)
        table = RegionTable.parse(fields["addresses"], fields["lengths"])
        return b64decode(fields["agent"], validate=True), table
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise TransferError(f"nixl: malformed description: {error!r}") from error


def _mapped(what: str, action: Callable[[], _T]) -> _T:
    """Maps NIXL's errors, whose classes derive from Exception only, to TransferError."""
    try:
        return action()
    except Exception as error:
        raise TransferError(f"nixl: {what}: {_describe(error)}") from error


def _quietly(action: Callable[[], object]) -> None:
    """Ignores the errors of giving something back to NIXL."""
    try:
        action()
    except Exception:
        return


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _reason_of(state: TransferState) -> str:
    return "nixl: the transfer failed" if state is TransferState.FAILED else ""
