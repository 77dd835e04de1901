"""Which role may call which method. A method that is missing here may be called by nobody."""

from typing import Any

import grpc.aio

from llmserve.core.errors import Forbidden
from llmserve.rpc.callers import CallerIdentity, CallerRole
from llmserve.rpc.credentials import shown_by

_APISERVER, _ROUTER, _WORKER = CallerRole.APISERVER, CallerRole.ROUTER, CallerRole.WORKER
_OPERATOR = CallerRole.OPERATOR

_CALLERS: dict[str, frozenset[CallerRole]] = {
    f"/llmserve.v1.{service}/{method}": frozenset(roles)
    for service, methods in {
        "Router": {
            "Session": {_APISERVER},
            "Register": {_WORKER},
            "Heartbeat": {_WORKER},
            "Deregister": {_WORKER},
            "GetClusterStatus": {_OPERATOR, _APISERVER},
            "Drain": {_OPERATOR, _APISERVER},
            "Reload": {_OPERATOR, _APISERVER},
            "Explain": {_OPERATOR, _APISERVER},
            "ListRequests": {_APISERVER},
            "Promise": {_ROUTER},
            "LoadAdapter": {_OPERATOR, _APISERVER},
            "UnloadAdapter": {_OPERATOR, _APISERVER},
            "KeepAdapter": {_OPERATOR, _APISERVER},
            "ListAdapters": {_OPERATOR, _APISERVER},
            "LoadModel": {_OPERATOR, _APISERVER},
            "UnloadModel": {_OPERATOR, _APISERVER},
            "ListModels": {_OPERATOR, _APISERVER},
            "FollowModels": {_OPERATOR, CallerRole.MODELMANAGER},
        },
        "Worker": {
            "Session": {_APISERVER},
            "ReleaseLease": {_APISERVER},
            "GetWorkerStatus": {_OPERATOR},
            "Profile": {_OPERATOR},
        },
        "KVManager": {
            "Report": {_WORKER},
            "Lookup": {_OPERATOR},
            "GetKvStatus": {_OPERATOR, _APISERVER},
            "AttachStore": {_WORKER},
            "PreparePrompt": {_WORKER},
            "SettleStore": {_WORKER},
            "ListBlocks": {_OPERATOR, _APISERVER},
            "PinBlocks": {_OPERATOR, _APISERVER},
            "EvictBlocks": {_OPERATOR},
            "DropAdapter": {_ROUTER},
            "VerifyBlocks": {_OPERATOR},
            "ExportBlocks": {_OPERATOR},
            "ImportBlocks": {_OPERATOR},
            "Watch": {_ROUTER},
            "Prefetch": {_ROUTER},
        },
    }.items()
    for method, roles in methods.items()
}
# Probes of Kubernetes ask for health, and have no credentials.
_OPEN_SERVICES = ("/grpc.health.v1.Health/",)
_FOR_OPERATORS = ("/grpc.reflection.",)


def is_open(method: str) -> bool:
    """Returns whether everybody may call the method, which changes nothing and says little."""
    return method.startswith(_OPEN_SERVICES)


def check_permission(caller: CallerIdentity, method: str) -> None:
    """method: `/PACKAGE.SERVICE/METHOD`. Errors: Forbidden."""
    may = _CALLERS.get(method, frozenset())
    if method.startswith(_FOR_OPERATORS):
        may = frozenset({_OPERATOR})
    if caller.role not in may:
        raise Forbidden(f"{caller.role} {caller.name} may not call {method}")


def check_name(context: grpc.aio.ServicerContext[Any, Any], name: str) -> None:
    """Checks that who calls speaks for itself. context: of a call that was let in. Errors: Forbidden."""
    caller = shown_by(context.invocation_metadata())
    if caller is not None and caller.name != name:
        raise Forbidden(f"{caller.role} {caller.name} may not speak for {name!r}")
