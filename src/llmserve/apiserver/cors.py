"""Which web pages may use the API from a browser: CORS, around everything that answers."""

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware

from llmserve.apiserver.asgi import AsgiApp, Message, Receive, Send
from llmserve.apiserver.handover_headers import FALLBACK, MODE, TRANSPORT
from llmserve.apiserver.http_spans import TRACE_ID
from llmserve.apiserver.request_ids import ANTHROPIC_REQUEST_ID, REQUEST_ID

_METHODS = ("GET", "HEAD", "POST")
_EXPOSED = (REQUEST_ID, ANTHROPIC_REQUEST_ID, TRACE_ID, TRANSPORT, MODE, FALLBACK, b"retry-after")
_PREFLIGHT_SECONDS = 600


class Cors:
    """An ASGI application. Answers preflights itself, since browsers send no key with them, and adds its
    headers to every other answer, errors too. Pages send keys in headers, so cookies are not allowed for."""

    def __init__(self, app: AsgiApp, origins: Sequence[str]) -> None:
        self._app = app
        self.allow(origins)

    def allow(self, origins: Sequence[str]) -> None:
        """These origins from the next request on, and no others."""
        self._cors = CORSMiddleware(
            self._app,
            allow_origins=origins,
            allow_methods=_METHODS,
            allow_headers=("*",),
            expose_headers=[name.decode() for name in _EXPOSED] if origins else (),
            # A page of the internet may use a server of this network, if its origin is allowed.
            allow_private_network=True,
            max_age=_PREFLIGHT_SECONDS,
        )

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await self._cors(scope, receive, send)
