"""uvicorn, started and stopped by its owner: it installs no signal handlers and prints nothing."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from llmserve.core.errors import LLMServeError, StartFailed
from llmserve.core.tasks import TaskOwner

_KEEP_ALIVE_SECONDS = 75  # longer than what load balancers in front keep idle connections for
_BACKLOG = 2048
_START_SECONDS = 30.0


class _Server(uvicorn.Server):
    """Signals belong to the process (DESIGN: the stop order is written once), not to its web server."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Life: start (once) -> aclose (idempotent, also after a failed start)."""

    def __init__(self, app: Any, listen: str) -> None:
        self._app, self._listen = app, listen
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None
        self._owner = TaskOwner("http")

    async def start(self) -> int:
        """Listens; returns the port. Errors: StartFailed when the address is taken."""
        bound = _bind(self._listen)
        config = uvicorn.Config(
            self._app,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="on",
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            # Requests get their time to end in ClusterEngineClient.drain.
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config)
        self._serving = self._owner.spawn("serve", self._server.serve(sockets=[bound]), fatal=True)
        up = self._owner.spawn("startup", self._server.up.wait())
        await asyncio.wait([up, self._serving], timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if not self._server.started:
            raise StartFailed("the HTTP application did not start; see the log above")
        return int(bound.getsockname()[1])

    async def wait(self) -> None:
        """Raises when the server ended, however. Between start and aclose."""
        assert self._serving is not None, "not started"
        await asyncio.wait([self._serving])
        raise LLMServeError("the HTTP server ended by itself")

    async def stop_listening(self) -> None:
        """New connections are refused; requests on open ones go on."""
        if self._server is not None:
            for server in self._server.servers:
                server.close()

    async def aclose(self) -> None:
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await asyncio.wait([self._serving], timeout=5.0)
        await self._owner.aclose()


def _bind(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        return socket.create_server(found[4][:2], family=found[0], backlog=_BACKLOG)
    except (OSError, ValueError) as error:
        raise StartFailed(f"cannot listen on {listen}: {error}") from error
