"""NIXL over UCX: one-sided reads and writes of memory of the host and of GPUs, over RDMA, NVLink, shared
memory or TCP, as UCX chooses. With a GPU it was not run; tests run that on a fake agent.

The agent runs without NIXL's progress thread, which uses a whole core while idle. So a process that is read
from must call `progress` while a reader connects, and on paths that are not one-sided also while it reads
(needs_progress).

UCX cannot take back a read: until the read completes its data may still arrive, even after the handle was
released and the peer removed (measured on UCX's TCP path with a stopped peer). So `cancel` waits for the end,
and only destroying the agent ends a read early. On that path the process that still answers a read may abort
when the reader is gone (UCX's protocol for the answers cannot be aborted: stubs.c:107), or end with a
segmentation fault. So an agent is destroyed only after its transfers have ended, or did not for seconds. What
remains is a reader that is killed in the middle of a read: docs/transfer.md.

UCX sees a GPU only in threads whose current CUDA device is set. Elsewhere it takes the memory of the GPU for
host memory, which NIXL refuses, or goes over TCP. So each step that may set up a path sets the device before.

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

from llmserve.core.errors import TransferError, TransportUnavailable
from llmserve.transfer.base import (
    Batch,
    Memory,
    PeerName,
    Region,
    Transfer,
    TransferState,
    TransferStatus,
)
from llmserve.transfer.description import malformed, parse_fields
from llmserve.transfer.devices import Copies, HostCopies
from llmserve.transfer.nixl.regions import TYPES, DescribedRegions, NixlRegions, by_types
from llmserve.transfer.spans import check_batch, check_reach, coalesce_pairs

_T = TypeVar("_T")
_CANCEL_SECONDS = 0.02
_DRAIN_SECONDS = 5.0  # the rest of the hand-over stands still meanwhile
_RDMA_DEVICES = Path("/sys/class/infiniband")
_STATES = {"DONE": TransferState.DONE, "PROC": TransferState.RUNNING, "ERR": TransferState.FAILED}


@dataclass(eq=False, slots=True)
class _Peer:
    agent_name: str
    regions: NixlRegions
    transfers: int = 0
    leaving: bool = False


@dataclass(eq=False, slots=True)
class _NixlTransfer:
    """handles: of NIXL, those that have not ended: one for each pair of memory types."""

    peer: _Peer
    handles: list[Any] = field(repr=False)
    status: TransferStatus
    failure: str = ""


class NixlTransport:
    name = "nixl"
    needs_progress = True

    def __init__(self, copies: Copies | None = None) -> None:
        """copies: of the device whose memory it is to reach beside the host's. Errors: TransportUnavailable
        with the reason."""
        self._copies = copies or HostCopies()
        self._api = _load()
        self._agent: Any = self._make_agent()
        self._regions = NixlRegions.of(())
        self._peers: dict[PeerName, _Peer] = {}
        self._running: set[_NixlTransfer] = set()
        self._closed = False

    def reaches(self, memory: Memory) -> bool:
        return memory.on_host or memory == self._copies.memory

    def register(self, regions: Sequence[Region]) -> None:
        self._check_open()
        check_reach(self, regions)
        if self._regions.table.lengths:  # a new agent: no read of the old memory outlives the old agent
            self._drop_agent("the memory was registered anew")
            self._agent = self._make_agent()
        self._regions = NixlRegions.of(regions)
        for memory in dict.fromkeys(region.memory for region in regions):
            rows = [
                (region.address, region.length_bytes, memory.device or 0, "")
                for region in regions
                if region.memory == memory
            ]
            self._register_rows(memory, rows)

    def describe(self) -> bytes:
        self._check_open()
        agent = b64encode(_mapped("describe", self._agent.get_agent_metadata)).decode()
        return json.dumps({"agent": agent, **self._regions.fields()}).encode()

    def connect(self, description: bytes) -> PeerName:
        self._check_open()
        metadata, regions = parse_description(description)
        self._copies.enter()
        agent_name = _mapped("connect", lambda: self._agent.add_remote_agent(metadata))
        agent_name = agent_name.decode() if isinstance(agent_name, bytes) else str(agent_name)
        peer = self._peers.setdefault(PeerName(agent_name), _Peer(agent_name, regions))
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
        transfer.handles = [one for one in transfer.handles if not self._has_ended(transfer, one)]
        if not transfer.handles and transfer.status.state is TransferState.RUNNING:
            state = TransferState.FAILED if transfer.failure else TransferState.DONE
            self._end(transfer, TransferStatus(state, transfer.failure))
        return transfer.status

    def watch(self, on_end: Callable[[], object]) -> bool:
        """NIXL's agent has no descriptor to wait for, and polling is what moves the bytes."""
        return False

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

    def _register_rows(self, memory: Memory, rows: list[tuple[int, int, int, str]]) -> None:
        kind = TYPES[not memory.on_host]
        _mapped(f"register {memory}", lambda: self._agent.register_memory(rows, kind))

    def _make_agent(self) -> Any:
        self._copies.enter()
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
            self._end(transfer, TransferStatus(TransferState.FAILED, f"nixl: {reason}"))
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
        check_batch(batch, self._regions.table.lengths, peer.regions.table.lengths)
        joined = coalesce_pairs(batch)
        if not len(joined.local.lengths):
            return _NixlTransfer(peer, [], TransferStatus(TransferState.DONE))
        self._copies.enter()
        transfer = _NixlTransfer(peer, [], TransferStatus(TransferState.RUNNING))
        peer.transfers += 1
        self._running.add(transfer)
        try:
            for types, part in by_types(joined, self._regions, peer.regions):
                self._start_part(operation, transfer, part, types)
        except Exception as error:
            transfer.failure = f"nixl: {operation}: {_describe(error)}"
            if not transfer.handles:
                self._end(transfer, TransferStatus(TransferState.FAILED, transfer.failure))
                raise TransferError(transfer.failure) from error
        return transfer

    def _start_part(
        self, operation: str, transfer: _NixlTransfer, part: Batch, types: tuple[str, str]
    ) -> None:
        """Errors: those of NIXL."""
        agent, peer = self._agent, transfer.peer
        local = agent.get_xfer_descs(self._regions.descriptors(part.local), types[0])
        remote = agent.get_xfer_descs(peer.regions.descriptors(part.remote), types[1])
        handle = agent.initialize_xfer(operation, local, remote, peer.agent_name)
        try:
            agent.transfer(handle)
        except Exception:
            self._release(handle)
            raise
        transfer.handles.append(handle)

    def _has_ended(self, transfer: _NixlTransfer, handle: Any) -> bool:
        try:
            state = _STATES[self._agent.check_xfer_state(handle)]
            reason = "nixl: the transfer failed" if state is TransferState.FAILED else ""
        except Exception as error:
            state, reason = TransferState.FAILED, _describe(error)
        if state is TransferState.RUNNING:
            return False
        transfer.failure = transfer.failure or reason
        self._release(handle)
        return True

    def _end(self, transfer: _NixlTransfer, status: TransferStatus) -> None:
        for handle in transfer.handles:
            self._release(handle)
        transfer.handles, transfer.status = [], status
        self._running.discard(transfer)
        transfer.peer.transfers -= 1
        self._remove_if_gone(transfer.peer)

    def _release(self, handle: Any) -> None:
        _quietly(lambda: self._agent.release_xfer_handle(handle))

    def _remove_if_gone(self, peer: _Peer) -> None:
        """Removes a peer once its transfers have ended: the state of a transfer needs its peer."""
        name = PeerName(peer.agent_name)
        if peer.leaving and not peer.transfers and self._peers.get(name) is peer:
            del self._peers[name]
            _quietly(lambda: self._agent.remove_remote_agent(peer.agent_name))

    def _check_open(self) -> None:
        if self._closed:
            raise TransferError("nixl: the transport is closed")


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


class _NixlFields(DescribedRegions, kw_only=True):
    agent: str


def parse_description(description: bytes) -> tuple[bytes, NixlRegions]:
    """Returns the metadata of an agent and its regions. Errors: TransferError."""
    fields = parse_fields(_NixlFields, description, "nixl")
    try:
        return b64decode(fields.agent, validate=True), NixlRegions.parse(fields)
    except ValueError as error:
        raise malformed("nixl", error) from error


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
