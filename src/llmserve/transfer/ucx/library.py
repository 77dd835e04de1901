"""The only module that uses ucxx: typed wrappers that map its errors. What ucxx lacks is in pieces.py."""

import contextlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmserve.core.errors import TransferError, TransportUnavailable
from llmserve.transfer.base import Int64Array
from llmserve.transfer.ucx.pieces import PieceMessages, PiecesRequest

Bytes = npt.NDArray[np.uint8]
RELEASE = "0.52"
_INSTALL = "pip install 'llmserve[ucx]'"
# UCX reads these when the library is loaded. An operator's own setting takes precedence.
_AT_LOAD = {
    "UCX_DEBUG_SIGNO": "0",  # UCX would handle SIGHUP otherwise
    "UCX_LOG_FILE": "stderr",  # not stdout
    "UCX_MEMTYPE_CACHE": "n",  # ucxx needs it, and sets it too late itself
}
_DEFAULTS = {  # an operator's UCX_TLS and so on take precedence
    "TLS": "^sm",
    "TCP_TX_SEG_SIZE": "256K",  # twice the throughput of 8K
    "TCP_RX_SEG_SIZE": "256K",
    "KEEPALIVE_INTERVAL": "2s",
}
EAGER_BELOW_BYTES = 4096  # UCX sends a shorter message at once, and the owner of a longer one fetches it
_REQUIRED = {
    "RNDV_THRESH": str(EAGER_BELOW_BYTES),
    "RCACHE_ENABLE": "y",
    "TCP_MAX_POLL": "1",
}  # see the package's docstring


@dataclass(frozen=True, slots=True)
class UcxLibrary:
    """The names that are used of ucxx."""

    api: Any
    array: Any
    tag: Any
    tag_mask: Any

    @property
    def ucx_version(self) -> str:
        return ".".join(map(str, self.api.get_ucx_version()))

    def make_worker(self, options: dict[str, str]) -> tuple[Any, Any]:
        context = self.api.UCXContext(options, (self.api.Feature.TAG, self.api.Feature.WAKEUP))
        worker = self.api.UCXWorker(context)
        worker.init_blocking_progress_mode()
        return context, worker


class UcxRequest:
    """A message in flight, or one that could not start. Its buffer is in use until it is over."""

    def __init__(self, request: Any, buffer: Bytes, failure: str = "") -> None:
        self._request = request
        self._failure = failure
        self.buffer = buffer

    @property
    def over(self) -> bool:
        return bool(self._failure or self._request.completed)

    @property
    def failure(self) -> str:
        """Returns why a request that is over failed; empty when it did not."""
        try:
            if not self._failure:
                self._request.check_error()
        except Exception as error:  # ucxx raises classes of its own, which derive from Exception
            self._failure = describe(error)
        return self._failure


MessageInFlight = UcxRequest | PiecesRequest


class UcxEndpoint:
    """A connection to the worker of another process."""

    def __init__(self, library: UcxLibrary, endpoint: Any, messages: PieceMessages) -> None:
        self._library = library
        self._endpoint = endpoint
        self._messages = messages
        self._of_pieces: list[PiecesRequest] = []  # in flight

    @property
    def alive(self) -> bool:
        return self._endpoint is not None and bool(self._endpoint.alive)

    def send(self, buffer: Bytes, tag: int) -> UcxRequest:
        return self._post("tag_send", buffer, tag)

    def receive(self, buffer: Bytes, tag: int) -> UcxRequest:
        return self._post("tag_recv", buffer, tag)

    def send_pieces(self, vectors: Int64Array, tag: int) -> MessageInFlight:
        """Sends a message of several pieces. vectors: the address and length of each."""
        return self._post_pieces(True, vectors, tag)

    def receive_pieces(self, vectors: Int64Array, tag: int) -> MessageInFlight:
        return self._post_pieces(False, vectors, tag)

    def close(self) -> None:
        """Closes at once: messages in flight end soon as failed. Idempotent."""
        for request in self._of_pieces:  # ucxx does not know them
            request.cancel()
        self._of_pieces.clear()
        endpoint, self._endpoint = self._endpoint, None  # the worker lives as long as its endpoints
        with contextlib.suppress(Exception):  # a dead peer is what it is closed for
            endpoint.close_blocking()

    def _post_pieces(self, send: bool, vectors: Int64Array, tag: int) -> MessageInFlight:
        if not self.alive:
            return UcxRequest(None, np.empty(0, np.uint8), "the connection is closed")
        worker = self._endpoint.worker_handle
        if send:
            request = self._messages.send(self._endpoint.handle, worker, vectors, tag)
        else:
            request = self._messages.receive(worker, vectors, tag)
        self._of_pieces = [one for one in self._of_pieces if not one.over]
        self._of_pieces.append(request)
        return request

    def _post(self, operation: str, buffer: Bytes, tag: int) -> UcxRequest:
        try:
            post = getattr(self._endpoint, operation)
            return UcxRequest(post(self._library.array(buffer), self._library.tag(tag)), buffer)
        except Exception as error:
            return UcxRequest(None, buffer, describe(error))


@dataclass(frozen=True, eq=False, slots=True)
class UnexpectedMessage:
    """A message for which no receive was posted."""

    tag: int
    request: UcxRequest


class UcxWorker:
    """One UCX context and worker. One thread at a time calls its methods."""

    def __init__(self) -> None:
        """Errors: TransportUnavailable with the reason."""
        self._library = library = load()
        self.ucx_version = library.ucx_version
        try:
            self._context, self._worker = library.make_worker(worker_options())
            self.event_fd: int = self._worker.epoll_file_descriptor
            self.address = bytes(self._worker.address.tobytes())
            self._messages = PieceMessages()
        except Exception as error:
            raise TransportUnavailable(f"ucx: no worker: {_explain(error)}") from error

    def progress(self) -> None:
        self._worker.progress()

    def arm(self) -> bool:
        """Says whether the event descriptor will signal the next event; if not, call progress again."""
        return bool(self._worker.arm())

    def connect(self, address: bytes) -> UcxEndpoint:
        """Connects without waiting for the peer. Errors: TransferError when the address is of no use."""
        try:
            endpoint = self._worker.create_endpoint_from_worker_address(
                self._library.api.UCXAddress.create_from_buffer(address), True
            )
        except Exception as error:
            raise TransferError(f"ucx: {describe(error)}") from error
        return UcxEndpoint(self._library, endpoint, self._messages)

    def arrivals(self) -> Iterator[UnexpectedMessage]:
        """Yields the messages for which no receive was posted."""
        any_tag, no_bits = self._library.tag(0), self._library.tag_mask(0)
        while (found := self._worker.tag_probe(any_tag, no_bits, True)).matched:
            buffer = np.empty(found.length, np.uint8)
            request = self._worker.tag_recv_with_handle(self._library.array(buffer), found)
            yield UnexpectedMessage(int(found.sender_tag.value), UcxRequest(request, buffer))

    def close(self) -> None:
        """Is called after the endpoints were closed."""
        del self._worker, self._context


def worker_options() -> dict[str, str]:
    """Returns the options of a UCX context."""
    options = {name: value for name, value in _DEFAULTS.items() if f"UCX_{name}" not in os.environ}
    return {**options, **_REQUIRED}


def load() -> UcxLibrary:
    """Loads ucxx. Errors: TransportUnavailable with what to install."""
    try:
        with _settings_at_load():
            import ucxx
            from ucxx._lib.arr import Array
            from ucxx.types import Tag, TagMask
    except (ImportError, OSError) as error:
        raise TransportUnavailable(f"ucx: cannot be imported: {describe(error)}; {_INSTALL}") from error
    if not str(ucxx.__version__).startswith(f"{RELEASE}."):
        raise TransportUnavailable(f"ucx: ucxx is {ucxx.__version__}, needed is {RELEASE}; {_INSTALL}")
    log = logging.getLogger("ucx")  # ucxx has given it a handler
    log.handlers.clear()
    log.propagate = True
    return UcxLibrary(ucxx.libucxx, Array, Tag, TagMask)


@contextlib.contextmanager
def _settings_at_load() -> Iterator[None]:
    """Sets variables that UCX reads only while it is loaded, and removes them afterwards, with those that
    ucxx sets: NIXL's UCX and child processes would use them."""
    before = _ucx_variables()
    os.environ.update({**_AT_LOAD, **before})
    try:
        yield
    finally:
        for name in _ucx_variables():
            del os.environ[name]
        os.environ.update(before)


def _ucx_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("UCX_")}


def _explain(error: Exception) -> str:
    if type(error).__name__ != "UCXXUnsupportedError":
        return describe(error)
    return "UCX gets no memory events: UCX_MEM_EVENTS=n, or NIXL was started after ucx in this process"


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
