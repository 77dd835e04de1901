"""All paths of the HTTP API, and the scopes that let a caller use each. A path that is missing is unknown to
all, so what vLLM adds later stays shut until it is listed.

Any one of a path's scopes is enough, and an admin has all of them. Methods of a path need the same.
"""

import re
from collections.abc import Iterable

from starlette.routing import compile_path

from llmserve.apiserver.auth.caller import AccessScope, Caller
from llmserve.config.schema import Manifest
from llmserve.core.errors import Forbidden, NotFound

# Load balancers and probes ask for these, and have no keys.
PROBES = frozenset({"/health", "/live", "/load", "/ping"})
METRICS = frozenset({"/metrics"})
# Paths that describe the API.
DOCS = frozenset({"/openapi.json", "/docs", "/docs/oauth2-redirect", "/redoc", "/version"})

# Routes of vLLM that a model has which pools.
POOLING_PATHS = frozenset(
    {"/v1/embeddings", "/classify", "/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"}
)
# Routes of the original projects.
GENERATING_PATHS = frozenset(
    {
        *("/generate", "/basic_generate", "/generate_vllm", "/generate_stream"),
        *("/stream", "/v1/generate", "/v1/generate/stream", "/v1/generate_nobatch", "/v1/chat"),
    }
)
INVOCATIONS = "/invocations"
_OF_VLLM = frozenset(
    {
        *POOLING_PATHS,
        INVOCATIONS,
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/tokenize",
        "/detokenize",
        "/generative_scoring",
    }
)
# The paths whose bodies have the field `model`.
CHOOSING_PATHS = _OF_VLLM | GENERATING_PATHS
_WITHOUT_A_MODEL = frozenset(
    {"/v1/responses/{response_id}", "/v1/responses/{response_id}/cancel", "/tokenizer_info"}
)
# The routes of vLLM that are kept.
KEPT_PATHS = _OF_VLLM | _WITHOUT_A_MODEL | DOCS

_INFERENCE = (
    *CHOOSING_PATHS,
    *_WITHOUT_A_MODEL,
    "/v1/files",
    "/v1/files/{file_id}",
    "/v1/files/{file_id}/content",
    "/v1/batches",
    "/v1/batches/{batch_id}",
    "/v1/batches/{batch_id}/cancel",
)
_SEEING = (
    *DOCS,
    "/",
    "/v1",
    "/v1/models",
    "/v1/models/{model_id:path}",
    "/model",
    "/status",
    "/v1/requests/{request_id}/explain",
    "/v1/requests/{request_id}/trace",
    "/admin/v1/caller",
    "/admin/v1/requests",
)
_READING = (
    *PROBES,
    *METRICS,
    "/admin/v1/status",
    "/admin/v1/tenants",
    "/admin/v1/kv",
    "/admin/v1/events",
)
_ADMINISTERING = (
    "/admin/reload",
    "/admin/v1/manifest",
    "/admin/v1/kv/pins",
    "/admin/v1/kv/pins/{block_hash}",
    "/admin/v1/bench",
    "/admin/v1/bench/{run_id}",
    "/admin/v1/workers/{worker}/drain",
    "/admin/v1/adapters",
    "/admin/v1/adapters/{name:path}/prefetch",
    "/admin/v1/adapters/{name:path}/pin",
    "/admin/v1/adapters/{name:path}",
    "/admin/v1/models",
    "/admin/v1/models/{name:path}",
    "/models/load",
    "/models/search/{text:path}",
    "/models/unload",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/load_lora_adapter",
    "/unload_lora_adapter",
)

_Scopes = frozenset[AccessScope]
NEEDS: dict[str, _Scopes] = {
    path: frozenset(scopes)
    for scopes, paths in (
        ({AccessScope.INFERENCE}, _INFERENCE),
        ({AccessScope.INFERENCE, AccessScope.READ}, _SEEING),
        ({AccessScope.READ}, _READING),
        ({AccessScope.ADMIN}, _ADMINISTERING),
    )
    for path in paths
}


def _patterns(paths: Iterable[str]) -> list[tuple[re.Pattern[str], _Scopes]]:
    return [(compile_path(path)[0], NEEDS[path]) for path in paths if "{" in path]


_PATTERNS = _patterns(NEEDS)


def is_administrative(path: str) -> bool:
    """Returns whether only admins may use the route of this path."""
    return _needed(path) == frozenset({AccessScope.ADMIN})


def needed_scopes(path: str) -> frozenset[AccessScope]:
    """Returns the scopes of which one is enough for a path, which may be that of a route with names in
    braces; empty: no key is needed, or there is nothing."""
    return frozenset() if path in PROBES else _needed(path) or frozenset()


def _needed(path: str) -> _Scopes | None:
    return NEEDS.get(path) or next((scopes for one, scopes in _PATTERNS if one.match(path)), None)


def public_paths(manifest: Manifest) -> frozenset[str]:
    """Returns the paths that the manifest opens to callers without a key, besides probes."""
    public = manifest.security.public
    docs = DOCS if public.docs or manifest.api.public_docs else frozenset()
    return docs | METRICS if public.metrics else docs


def check_scope(caller: Caller, path: str) -> None:
    """path: of a request, without the root. Errors: NotFound for a path that no route has; Forbidden."""
    needed = _needed(path)
    if needed is None:
        raise NotFound(f"there is nothing at {path}")
    if needed.isdisjoint(caller.scopes) and not caller.admin:
        names = " or ".join(sorted(needed))
        if needed == {AccessScope.ADMIN}:
            names = "admin: only for admins, or without any keys for clients on loopback"
        raise Forbidden(f"this needs a key with the scope {names}")
