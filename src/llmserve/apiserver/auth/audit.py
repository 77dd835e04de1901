"""What of the requests of clients goes to the audit log: what changes the cluster, and what is refused."""

from collections.abc import Mapping

from starlette.types import Scope

from llmserve.apiserver.auth.permissions import is_administrative
from llmserve.apiserver.http.scope import RequestScope
from llmserve.rpc.audit import AuditEntry, named_in, record_call, record_refusal

_REFUSALS = frozenset({401, 403, 429})
_READS = frozenset({"GET", "HEAD", "OPTIONS"})


def audit(scope: Scope, request: RequestScope, status: int) -> None:
    """Called when a request was answered. status: of HTTP; 0: nothing was sent. The query is left out:
    clients may put secrets there."""
    if status in _REFUSALS:
        record_refusal(_entry(scope, request, status))
    elif scope["method"] not in _READS and is_administrative(scope["path"]):
        record_call(_entry(scope, request, status))


def about(scope: Scope, body: bytes) -> Mapping[str, str]:
    """Returns what a request is for that changes the cluster, by names in its body."""
    is_order = scope["method"] not in _READS and is_administrative(scope["path"])
    return named_in(body) if is_order else {}


def _entry(scope: Scope, request: RequestScope, status: int) -> AuditEntry:
    client = scope.get("client")
    who = {
        "tenant": "" if status == 401 else request.tenant,
        "key": request.caller.key_id,
        "address": client[0] if client else "",
    }
    what = f"{scope['method']} {scope['path']}"
    about = {**request.about, "request_id": request.request_id}
    return AuditEntry(what, str(status or "no answer"), who, about)
