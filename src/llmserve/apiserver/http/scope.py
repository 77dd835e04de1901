"""What the HTTP edge and the engine client share about one HTTP request.

vLLM's layer stands between the two and passes neither tenants in nor early errors out; a context
variable reaches around it (it is copied into every task that the layer makes for the request).
"""

from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from llmserve.apiserver.adapters.version import RequestVersion
from llmserve.apiserver.auth.caller import NOBODY, Caller
from llmserve.apiserver.explain.record import RecordHandle, detached
from llmserve.apiserver.http.errors import ErrorForm
from llmserve.apiserver.http.text_events import TextEvents
from llmserve.apiserver.responses.scope import ResponseScope
from llmserve.core.adapters import NamedAdapter
from llmserve.core.ids import TenantId
from llmserve.core.request import HandoverReport
from llmserve.tracing.base import NO_SPAN, Span


async def _always() -> bool:
    return True


@dataclass(slots=True)
class RequestScope:
    """caller: who asks; on public paths, where no key is read, one without rights. early_error: why the
    request failed before it had any output, so that a streamed response, whose status vLLM sends first, can
    still carry it as its status. handovers: how the KV of its sequences came to decode, as far as known.
    request_id: x-request-id, the client's or ours. explain: what is remembered of the request. span: of HTTP.
    form: of its errors. responses: the stored responses that it is about. reached_engine: its fields are
    fine, and a run was begun. text_events: those of its stream; None: all of its events are vLLM's. adapter:
    the version that `lora_path` has chosen. version: that on which all its sequences run. waited_seconds: how
    much of the request's time has passed already. is_allowed: whether its key or token would still let the
    same caller in. about: what a change of the cluster is for, in the audit log."""

    caller: Caller = NOBODY
    early_error: Exception | None = None
    handovers: list[HandoverReport] = field(default_factory=list)
    request_id: str = ""
    explain: RecordHandle = field(default_factory=detached)
    span: Span = NO_SPAN
    form: ErrorForm = ErrorForm.OPENAI
    responses: ResponseScope = field(default_factory=ResponseScope)
    reached_engine: bool = False
    text_events: TextEvents | None = None
    adapter: NamedAdapter | None = None
    version: RequestVersion | None = None
    waited_seconds: float = 0.0
    is_allowed: Callable[[], Awaitable[bool]] = _always
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def tenant(self) -> TenantId:
        """The tenant of the caller."""
        return self.caller.tenant


_CURRENT: ContextVar[RequestScope] = ContextVar("llmserve-request-scope")


def enter_scope(scope: RequestScope) -> None:
    """Called by the HTTP edge, in the task of the request."""
    _CURRENT.set(scope)


def current_scope() -> RequestScope:
    """A fresh default one outside of HTTP requests."""
    return _CURRENT.get(RequestScope())
