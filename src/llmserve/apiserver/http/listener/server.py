"""uvicorn, started and stopped by its owner: it installs no signal handlers and prints nothing."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from functools import partial
from typing import Any

import uvicorn

from llmserve.apiserver.http.listener.certificate import HttpCertificate
from llmserve.apiserver.http.listener.shared_accept import SharedAccept
from llmserve.apiserver.http.listener.shared_port import PortShare, bind
from llmserve.apiserver.limits.connections import ConnectionCounts
from llmserve.apiserver.limits.protocol import HttpProtocol, refuse_connection
from llmserve.config.schema.limits import DEFAULT_LIMITS, SecurityLimits
from llmserve.core.errors import LLMServeError, StartFailed
from llmserve.core.logs import ScarceRecords
from llmserve.core.tasks import TaskOwner
from llmserve.rpc.wires.accepting import accept_all, address_of

_log = logging.getLogger(__name__)
_UVICORN_LOG = "uvicorn.error"

_KEEP_ALIVE_SECONDS = 75  # longer than what load balancers in front keep idle connections for
_BACKLOG = 2048
_TICKS_OF_A_LOOK = 10  # at the files of the certificate: once a second
_START_SECONDS = 30.0


class _Server(uvicorn.Server):
    """Signals belong to the process (DESIGN: the stop order is written once), not to its web server."""

    def __init__(
        self, config: uvicorn.Config, certificate: HttpCertificate | None, handshake_seconds: float
    ) -> None:
        super().__init__(config)
        self._certificate = certificate
        self._tls: dict[str, Any] = {}
        if config.ssl is not None:
            self._tls = {"ssl": config.ssl, "ssl_handshake_timeout": handshake_seconds}
        self.up = asyncio.Event()
        self.shared: SharedAccept | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """sockets: without TLS. With it, connections are accepted elsewhere."""
        await super().startup([])
        loop = asyncio.get_running_loop()
        for one in sockets or ():
            self.servers.append(await loop.create_server(self._protocol, sock=one, backlog=_BACKLOG))
        self.up.set()

    async def on_tick(self, counter: int) -> bool:
        """Every tenth of a second."""
        if self.shared is not None:
            self.shared.publish()
        if self._certificate is not None and counter % _TICKS_OF_A_LOOK == 0:
            self._certificate.renew()
        return await super().on_tick(counter)

    async def adopt(self, connection: socket.socket) -> None:
        """Serves a connection that was accepted elsewhere. Returns when it has shaken hands."""
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        try:
            await loop.connect_accepted_socket(self._protocol, connection, **self._tls)
        except OSError as error:  # it has gone already
            _log.debug("a connection ended before it began: %s", error)
            connection.close()

    def _protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http
        protocol: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Life: start (once) -> stop_listening -> aclose (both idempotent, also after a failed start)."""

    def __init__(
        self,
        app: Any,
        listen: str,
        share: PortShare | None = None,
        limits: SecurityLimits = DEFAULT_LIMITS,
        certificate: HttpCertificate | None = None,
    ) -> None:
        """share: of a port that is served in addition to `listen`. limits: of connections and headers.
        certificate: both ports speak TLS with it."""
        self._certificate = certificate
        self._app, self._listen, self._share, self._limits = app, listen, share, limits
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._owner = TaskOwner("http")
        self._adopting: set[asyncio.Task[None]] = set()
        self._scarce = ScarceRecords()  # each request that is no HTTP is a warning of uvicorn's
        self._handshakes = ConnectionCounts(limits.connections_per_address)
        self._accepting: asyncio.Task[None] | None = None  # with TLS

    async def start(self) -> int:
        """Listens; returns the port. Errors: StartFailed when the address is taken."""
        bound = _listen_at(self._listen)
        config = uvicorn.Config(
            self._app,
            http=self._protocol(),
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="on",
            ws="none",
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            # Requests get their time to end in ClusterEngineClient.drain.
            timeout_graceful_shutdown=1,
        )
        config.load()
        logging.getLogger(_UVICORN_LOG).addFilter(self._scarce)
        config.ssl = self._certificate.context if self._certificate else None
        self._server = _Server(config, self._certificate, self._limits.header_seconds)
        sockets = [] if self._certificate else [bound]
        self._serving = self._owner.spawn("serve", self._server.serve(sockets=sockets), fatal=True)
        up = self._owner.spawn("startup", self._server.up.wait())
        await asyncio.wait([up, self._serving], timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not self._server.started:
            raise StartFailed("the HTTP application did not start; see the log above")
        if self._certificate is not None:
            self._accepting = self._owner.spawn("accept", accept_all(bound, self._take), fatal=True)
        if self._share is not None:
            self._server.shared = self._open_shared(self._share)
        return int(bound.getsockname()[1])

    def _protocol(self) -> Any:
        counts = ConnectionCounts(self._limits.connections_per_address)
        return partial(HttpProtocol, limits=self._limits, counts=counts)

    def _open_shared(self, share: PortShare) -> SharedAccept:
        try:
            shared = SharedAccept(share, self._take, lambda: self.connections)
            shared.start()
        except (OSError, ValueError) as error:
            raise StartFailed(f"the shared port cannot be used: {error}") from error
        return shared

    def _take(self, connection: socket.socket) -> None:
        address = address_of(connection) or None
        if not self._handshakes.take(address):
            refuse_connection(address)
            connection.close()
            return
        task = self._owner.spawn("adopt", self._adopt(connection, address))
        self._adopting.add(task)
        task.add_done_callback(self._adopting.discard)

    async def _adopt(self, connection: socket.socket, address: str | None) -> None:
        assert self._server is not None, "not started"
        try:
            await self._server.adopt(connection)
        finally:
            self._handshakes.give_back(address)

    @property
    def connections(self) -> int:
        """Number of connections that are open, or about to be."""
        open_now = len(self._server.server_state.connections) if self._server is not None else 0
        return open_now + len(self._adopting)

    async def wait(self) -> None:
        """Raises when the server ended, however, or takes no connections any more. Between start and
        aclose."""
        assert self._serving is not None, "not started"
        works = [work for work in (self._serving, self._accepting) if work is not None]
        await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
        raise LLMServeError("the HTTP server ended by itself")

    async def stop_listening(self) -> None:
        """New connections are refused; requests that run go on, and their connections end with them."""
        if self._server is None:
            return
        for server in self._server.servers:
            server.close()
        if self._accepting is not None:
            self._accepting.cancel()
        if self._server.shared is not None:
            self._server.shared.close()
        for connection in self._server.server_state.connections:
            if isinstance(connection, HttpProtocol):
                connection.end_after_answer()

    async def aclose(self) -> None:
        await self.stop_listening()
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.wait([self._serving], timeout=5.0)
        await self._owner.aclose()
        logging.getLogger(_UVICORN_LOG).removeFilter(self._scarce)


def _listen_at(address: str) -> socket.socket:
    try:
        bound = bind(address)
        bound.listen(_BACKLOG)
        bound.setblocking(False)
        return bound
    except (OSError, ValueError) as error:
        raise StartFailed(f"cannot listen on {address}: {error}") from error
