"""Whether requests can be served right now."""

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

from llmserve.apiserver.http.body import own_request
from llmserve.core.request import WorkerRole
from llmserve.rpc.codec import decode_role
from llmserve.rpc.gen.llmserve.v1.common_pb2 import WorkerInfo


class Cluster(Protocol):
    """The view of the cluster that readiness needs. RouterLink is one."""

    @property
    def connected(self) -> bool: ...
    @property
    def workers(self) -> Sequence[WorkerInfo]: ...


class Readiness:
    """Whether requests to one model can be served. needs_pairs: a request needs a prefill and a decode
    worker, or an aggregated one; else a worker of any role is enough."""

    def __init__(self, cluster: Cluster, model: str, *, needs_pairs: bool) -> None:
        self._cluster, self._model, self._needs_pairs = cluster, model, needs_pairs

    def missing(self) -> str:
        """Returns what is missing, as text; empty when requests can be served."""
        if not self._cluster.connected:
            return "no session with the router"
        roles = {decode_role(one.role) for one in self._cluster.workers if one.model == self._model}
        if WorkerRole.AGGREGATED in roles:
            return ""
        if not self._needs_pairs:
            return "" if roles else "no worker is available"
        away = [role.value for role in (WorkerRole.PREFILL, WorkerRole.DECODE) if role not in roles]
        return f"no {' and no '.join(away)} worker is available" if away else ""


_ANSWER_SECONDS = 2.0
_QUESTION = "/v1/models"


async def api_failure(app: Any) -> str:
    """Asks vLLM's app for its models, as a client would, past the gate and its keys. Returns why it did not
    answer, in words; empty when it did. What stands in its way (a key from the environment, a middleware)
    stands in everybody's."""
    status = 0

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            await app(own_request("GET", _QUESTION, [(b"host", b"localhost")]), receive, send)
    except TimeoutError:
        return f"the API layer gives no answer within {_ANSWER_SECONDS:g} s"
    except Exception as error:
        return f"the API layer fails: {error!r}"
    return "" if status == 200 else f"the API layer answers GET {_QUESTION} with {status}"
