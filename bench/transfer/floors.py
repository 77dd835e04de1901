"""What each transport stands on, without it: the floors of `python -m bench transfer`.

A floor is a function that both processes run over their memory. It sets up what is bare (exchange
sends an object to the other side and returns theirs) and yields `move`, which both sides call
once for each transfer: the near side starts it and returns when all its bytes have arrived.
"""

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from llmserve.transfer.ucx.library import load, worker_options

Int64Array = npt.NDArray[np.int64]
_MESSAGE = bytes(64)


@dataclass(frozen=True, slots=True)
class Side:
    """exchange is called equally often on both sides; answered says whether the other has sent."""

    near: bool
    memory: npt.NDArray[np.uint8]
    exchange: Callable[[Any], Any]
    answered: Callable[[float], bool]


@dataclass(frozen=True, slots=True)
class Job:
    """Copy so many bytes in pieces of one size: near[i] and far[i] are the offsets of piece i."""

    operation: str  # read: from far to near
    piece_bytes: int
    near: Int64Array
    far: Int64Array

    @property
    def total_bytes(self) -> int:
        return self.piece_bytes * len(self.near)


Move = Callable[[Job], None]
Floor = Callable[[Side], AbstractContextManager[Move]]


@contextmanager
def tcp(side: Side) -> Iterator[Move]:
    """A blocking socket. A message asks before the bytes, another one answers after them; it is as
    long as keeps the bytes aligned in the kernel's buffers, which doubles its speed."""
    with _connected(side) as link:
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")  # the system's may be bbr
        message = memoryview(bytearray(_MESSAGE))

        def move(job: Job) -> None:
            data = side.memory.data[_extent(side, job)]
            if side.near:
                link.sendall(_MESSAGE)
            else:
                _fill(link, message)
            if _sends(side, job):
                link.sendall(data)
                _fill(link, message)
            else:
                _fill(link, data)
                link.sendall(_MESSAGE)

        yield move


def _connected(side: Side) -> socket.socket:
    if side.near:
        return socket.create_connection(side.exchange(None))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        side.exchange(listener.getsockname())
        return listener.accept()[0]


def _fill(link: socket.socket, data: memoryview) -> None:
    done = 0
    while done < len(data):
        done += link.recv_into(data[done:], 0, socket.MSG_WAITALL)


@contextmanager
def nixl(side: Side) -> Iterator[Move]:
    """A bare agent: descriptors, one request, poll to its end."""
    os.environ.setdefault("UCX_RCACHE_MAX_UNRELEASED", "1024")
    from nixl._api import nixl_agent, nixl_agent_config

    agent = nixl_agent("near" if side.near else "far", nixl_agent_config(False, backends=["UCX"]))
    agent.register_memory([(side.memory.ctypes.data, side.memory.nbytes, 0, "")], "DRAM")
    metadata, address = side.exchange((agent.get_agent_metadata(), side.memory.ctypes.data))

    def start(job: Job) -> None:
        local = agent.get_xfer_descs(_rows(job, side.memory.ctypes.data + job.near), "DRAM")
        remote = agent.get_xfer_descs(_rows(job, address + job.far), "DRAM")
        handle = agent.initialize_xfer(job.operation.upper(), local, remote, "far")
        state = agent.transfer(handle)
        while state == "PROC":
            state = agent.check_xfer_state(handle)
        assert state == "DONE", state
        agent.release_xfer_handle(handle)

    def move(job: Job) -> None:
        if side.near:
            start(job)
        else:
            while not side.answered(0.001):
                agent.get_new_notifs()

    if side.near:
        agent.add_remote_agent(metadata)
        agent.make_connection("far")
    yield move
    side.exchange(None)


def _rows(job: Job, addresses: Int64Array) -> npt.NDArray[np.uint64]:
    rows = np.zeros((len(addresses), 3), np.uint64)
    rows[:, 0], rows[:, 1] = addresses, job.piece_bytes
    return rows


@contextmanager
def shm(side: Side) -> Iterator[Move]:
    """memcpy inside one process; the other has no part in it."""
    other = np.ones_like(side.memory)

    def move(job: Job) -> None:
        if side.near:
            side.memory[_extent(side, job)] = other[_extent(replace(side, near=False), job)]

    yield move


@contextmanager
def ucx(side: Side) -> Iterator[Move]:
    """Tagged messages of bare ucxx, with the transport's settings of UCX; both sides sleep until there is
    progress to be made."""
    library = load()
    api, array = library.api, library.array
    _context, worker = library.make_worker(worker_options())
    address = bytes(api.UCXAddress.create_from_worker(worker))
    theirs = api.UCXAddress.create_from_buffer(side.exchange(address))
    endpoint = api.UCXEndpoint.create_from_worker_address(worker, theirs, endpoint_error_handling=True)
    byte = array(np.zeros(1, np.uint8))
    question, data, answer = (api.UCXXTag(number) for number in range(3))

    def wait(request: Any) -> None:
        while not request.completed:
            worker.progress_worker_event()
        request.check_error()

    def move(job: Job) -> None:
        bulk = array(side.memory[_extent(side, job)])
        if side.near:
            wait(endpoint.tag_send(byte, question))
        else:
            wait(endpoint.tag_recv(byte, question))
        if _sends(side, job):
            wait(endpoint.tag_send(bulk, data))
            wait(endpoint.tag_recv(byte, answer))
        else:
            wait(endpoint.tag_recv(bulk, data))
            wait(endpoint.tag_send(byte, answer))

    yield move
    side.exchange(None)


@contextmanager
def gloo(side: Side) -> Iterator[Move]:
    """torch.distributed's send and recv."""
    import torch
    import torch.distributed as group

    store = group.TCPStore("127.0.0.1", 0, is_master=True) if side.near else None
    port = side.exchange(store.port if store else None)
    store = store or group.TCPStore("127.0.0.1", port)
    group.init_process_group("gloo", store=store, rank=int(not side.near), world_size=2)
    other, byte = int(side.near), torch.zeros(1, dtype=torch.uint8)

    def move(job: Job) -> None:
        bulk = torch.from_numpy(side.memory[_extent(side, job)])
        if side.near:
            group.send(byte, other)
        else:
            group.recv(byte, other)
        if _sends(side, job):
            group.send(bulk, other)
            group.recv(byte, other)
        else:
            group.recv(bulk, other)
            group.send(byte, other)

    yield move
    side.exchange(None)
    group.destroy_process_group()


def _sends(side: Side, job: Job) -> bool:
    return (job.operation == "write") == side.near


def _extent(side: Side, job: Job) -> slice:
    """As many bytes as the job's, in one piece."""
    first = int((job.near if side.near else job.far)[0])
    start = min(first, side.memory.nbytes - job.total_bytes)
    return slice(start, start + job.total_bytes)


FLOORS: Mapping[str, Floor] = {"tcp": tcp, "nixl": nixl, "shm": shm, "ucx": ucx, "nccl": gloo}
