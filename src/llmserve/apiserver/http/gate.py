"""The edge of HTTP, around vLLM's app: who asks, how much is sent, and with which status a request fails.

    authenticate -> read the body within its limits -> check it -> RequestScope -> vLLM's app -> HeldResponse

A call from within this process names its caller in the ASGI scope, under CALLER. The key by which it came
must still be known.

While the server stops, nothing new begins, every answer ends its connection, and none is torn off silently.
"""

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from types import MappingProxyType

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmserve.apiserver.auth.audit import about, audit
from llmserve.apiserver.auth.authenticator import Authenticator
from llmserve.apiserver.auth.caller import Caller
from llmserve.apiserver.auth.credential import without_credentials
from llmserve.apiserver.auth.permissions import METRICS, PROBES, check_scope
from llmserve.apiserver.explain.records import RequestRecords
from llmserve.apiserver.http.body import BodyLimits, bounded, check_body, discard_body, read_body, replay
from llmserve.apiserver.http.errors import form_of
from llmserve.apiserver.http.headers import request_id_of, without_unusable
from llmserve.apiserver.http.response import STOPPING, Draining, HeldResponse
from llmserve.apiserver.http.scope import RequestScope, enter_scope
from llmserve.apiserver.http.spans import HttpSpans
from llmserve.apiserver.http.spans import end as end_span
from llmserve.core.errors import LLMServeError, Unavailable
from llmserve.core.logs import RequestNames, name_request

CALLER = "llmserve.caller"
_OPEN_PATHS = PROBES | METRICS
_OPEN_WHILE_DRAINING = frozenset({"/live", "/metrics"})
_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip")
# Names that only this machine has.
_LOCAL_NAMES = re.compile(rb"(localhost|127(\.\d+){3}|\[::1\])(:\d+)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Paths:
    """root: the path under which a proxy serves all others, or empty. public: paths that need no key.
    streamed: the most bytes that a body may have, of each path whose route reads the body itself, piece by
    piece."""

    root: str = ""
    public: frozenset[str] = _OPEN_PATHS
    streamed: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls, root: str | None, also_public: frozenset[str], streamed: Mapping[str, int] = MappingProxyType({})
    ) -> "Paths":
        return cls(root or "", PROBES | also_public, streamed)

    def route(self, path: str) -> str:
        """Returns the path without the root, which a proxy may have removed already."""
        inside = path.removeprefix(self.root)
        return inside if inside.startswith("/") else path


class Gate:
    """An ASGI application. limits: of the bodies that are read here. draining.begun: may change while it
    runs. What is refused here is not traced, so that a stranger cannot fill the traces."""

    def __init__(
        self,
        app: ASGIApp,
        auth: Authenticator,
        limits: BodyLimits,
        records: RequestRecords,
        spans: HttpSpans,
        paths: Paths = Paths(),
    ) -> None:
        self.auth, self.draining = auth, Draining()
        self._app, self._limits, self._records, self._spans = app, limits, records, spans
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(_as_routed(scope, self._paths), receive, send)
        else:
            await self._app(scope, receive, send)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = scope["headers"]
        request = RequestScope(request_id=request_id_of(headers), form=form_of(scope["path"], headers))
        response = HeldResponse(request, self.draining, send)
        try:
            await self._answer(scope, receive, request, response)
        finally:
            audit(scope, request, response.status)

    async def _answer(
        self, scope: Scope, receive: Receive, request: RequestScope, response: HeldResponse
    ) -> None:
        if self.draining.begun and scope["path"] not in _OPEN_WHILE_DRAINING:
            await discard_body(receive)
            await response.refuse(Unavailable(STOPPING))
            return
        try:
            await self._serve(scope, receive, request, response)
        except asyncio.CancelledError:  # by the web server, which waits no longer
            if not self.draining.begun or not await response.cut_off():
                raise

    async def _serve(
        self, scope: Scope, receive: Receive, request: RequestScope, response: HeldResponse
    ) -> None:
        try:
            receive = await self._let_in(scope, receive, request)
        except LLMServeError as error:
            await response.refuse(error)
            return
        if scope["method"] == "POST" and scope["path"] not in self._paths.public:
            self._remember(scope, request)
        enter_scope(request)
        name_request(RequestNames(request.request_id, request.span.trace_id))
        try:
            await self._app(_without_credentials(scope), receive, response.send)
        except Exception as error:
            await response.fail(error)
        finally:
            request.explain.part_ended()

    async def _let_in(self, scope: Scope, receive: Receive, request: RequestScope) -> Receive:
        """Returns what gives the body. Errors: NotAuthenticated, Forbidden, NotFound, RequestTooLarge,
        InvalidRequest, ClientTooSlow."""
        headers = scope["headers"]
        if scope["path"] not in self._paths.public:
            request.caller = await self._caller_of(scope)
            check_scope(request.caller, scope["path"])
            request.is_allowed = partial(self._is_still, request.caller, scope)
        if (limit_bytes := self._paths.streamed.get(scope["path"])) is not None:
            return bounded(headers, receive, BodyLimits(limit_bytes, self._limits.seconds))
        first = await read_body(headers, receive, self._limits)
        body = first.get("body", b"")
        request.about = about(scope, body)
        check_body(headers, body)
        return replay(first, receive)

    async def _caller_of(self, scope: Scope) -> Caller:
        """Errors: NotAuthenticated."""
        caller: Caller | None = scope.get(CALLER)
        if caller is None:
            return await self.auth.caller_of(scope["headers"], is_local=_is_local(scope))
        self.auth.check(caller)
        return caller

    async def _is_still(self, caller: Caller, scope: Scope) -> bool:
        """Returns whether a request that shows the same would be this caller's. What cannot be decided now is
        as it was."""
        try:
            return await self._caller_of(scope) == caller
        except Unavailable:
            return True
        except LLMServeError:
            return False

    def _remember(self, scope: Scope, request: RequestScope) -> None:
        """Opens a record of the request, and a span that ends with it."""
        explain = request.explain = self._records.open(request.request_id, request.tenant, scope["path"])
        span = request.span = self._spans.begin(
            scope["path"], scope["headers"], request.request_id, request.tenant
        )
        explain.record.trace_id = span.trace_id
        explain.when_closed(lambda: end_span(span, explain.record))


def _as_routed(scope: Scope, paths: Paths) -> Message:
    """HEAD is answered as GET, and the server leaves the body out. A slash at a path's end has no meaning,
    and neither has an x-request-id that is not plain."""
    method = "GET" if scope["method"] == "HEAD" else scope["method"]
    path = paths.route(scope["path"]).rstrip("/") or "/"
    return {**scope, "method": method, "path": path, "headers": without_unusable(scope["headers"])}


def _without_credentials(scope: Scope) -> Message:
    return {**scope, "headers": without_credentials(scope["headers"])}


def _is_local(scope: Scope) -> bool:
    """Returns whether the client is on this machine, and neither a proxy nor a web page of somebody else in a
    browser. Such a page may have given its own name the address of this machine, so a browser's word that the
    page is this server's own (origin, host) counts only with a name that nobody can give away."""
    headers, client = dict(scope["headers"]), scope.get("client")
    if client is None or any(name in headers for name in _FORWARDED):
        return False
    host, origin = headers.get(b"host", b"localhost"), headers.get(b"origin")
    if not _LOCAL_NAMES.fullmatch(host) or origin not in (None, b"http://" + host, b"https://" + host):
        return False
    try:
        return ip_address(client[0]).is_loopback
    except ValueError:
        return False
