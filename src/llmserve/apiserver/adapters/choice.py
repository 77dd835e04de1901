"""The choice of an adapter by the field `lora_path`, which vLLM's layer does not read.

An ASGI application around vLLM's. It gives the request the adapter's name as its `model`, so that all routes
are alike for it, and notes the version in the request's scope.
"""

import json
import re
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmserve.apiserver.adapters.manager import AdapterManager, name_for, read_source
from llmserve.apiserver.adapters.names import AdapterNames
from llmserve.apiserver.adapters.version import RequestVersion
from llmserve.apiserver.http.body import replay
from llmserve.apiserver.http.original_routes import GENERATING_PATHS
from llmserve.apiserver.http.scope import current_scope
from llmserve.config.messages import did_you_mean
from llmserve.core.adapters import NamedAdapter
from llmserve.core.errors import InvalidRequest, LLMServeError, NotFound

FIELD = "lora_path"
_INVOCATIONS = "/invocations"
CHOOSING_PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/tokenize",
        "/detokenize",
        "/generative_scoring",
        _INVOCATIONS,
        *GENERATING_PATHS,
    }
)
_ESCAPED_LETTER = re.compile(rb"\\u00(?:5[fF]|6[18cCfF]|7[024])")
_SOURCES = ("/", "dir:", "hub:", "s3://")
_SAGEMAKER_S_MODEL = b"x-amzn-sagemaker-adapter-identifier"


class AdapterChoice:
    """app: vLLM's. model: the name of the model itself."""

    def __init__(self, app: ASGIApp, names: AdapterNames, manager: AdapterManager, model: str) -> None:
        self._app, self._names, self._manager, self._model = app, names, manager, model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Errors: InvalidRequest, NotFound; those of AdapterManager."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in CHOOSING_PATHS:
            first = await receive()
            try:
                scope, first = await self._chosen(scope, first)
            except LLMServeError as error:
                current_scope().explain.record.error = error.message
                raise
            receive = replay(first, receive)
        await self._app(scope, receive, send)

    async def _chosen(self, scope: Scope, first: Message) -> tuple[Scope, Message]:
        """Returns the scope and the body's first message as vLLM's layer is to see them."""
        body, is_invocation = first.get("body", b""), scope["path"] == _INVOCATIONS
        if not (is_invocation or _may_have_it(body)) or (fields := _fields(body)) is None:
            return scope, first
        if is_invocation:
            fields["model"] = _model_in_header(scope) or fields.get("model")
        if fields.get(FIELD) is not None:
            fields["model"] = await self._choose(fields.pop(FIELD), fields.get("model"))
            first = {**first, "body": json.dumps(fields).encode()}
        return (_with_model_in_header(scope, fields["model"]) if is_invocation else scope), first

    async def _choose(self, wanted: object, model: object) -> str:
        """Returns the adapter's name. wanted, model: these fields of the request. Errors: InvalidRequest,
        NotFound; those of AdapterManager."""
        if not isinstance(wanted, str) or not wanted:
            text = f"{FIELD} has to be the name, the digest or the source of one adapter"
            raise InvalidRequest(text, field=FIELD)
        scope, by_model = current_scope(), None
        if model not in (None, "", self._model):
            by_model = self._names.find(str(model))
            if by_model is None:
                raise NotFound(f"The model `{model}` does not exist.")
        adapter = self._names.find(wanted) or await self._load(wanted)
        if by_model is not None and by_model.digest != adapter.digest:
            raise InvalidRequest(f"model and {FIELD} name different adapters: {model}, {wanted}", field=FIELD)
        scope.adapter = adapter
        if adapter.digest in (wanted, model):
            scope.version = RequestVersion(adapter.digest)  # whatever its name means later
        return adapter.name

    async def _load(self, wanted: str) -> NamedAdapter:
        """Loads an adapter from its source. Errors: NotFound when this is none; those of AdapterManager."""
        if not wanted.startswith(_SOURCES):
            raise self._unknown(wanted)
        source = read_source(wanted, FIELD)
        if found := self._names.find(str(source)):
            return found
        scope, began = current_scope(), time.monotonic()
        if not scope.may_use(name_for(source)):
            raise self._unknown(wanted)
        try:
            return await self._manager.load_for_request(source)
        finally:
            scope.waited_seconds = time.monotonic() - began

    def _unknown(self, wanted: str) -> NotFound:
        hint = did_you_mean(wanted, list(self._names))
        return NotFound(f"{FIELD}: there is no adapter {wanted!r}{hint}")


def _may_have_it(body: bytes) -> bool:
    """Returns whether a body may have the field, perhaps with some of its letters as escapes. Most have not,
    and need not be parsed here."""
    return FIELD.encode() in body or (b"\\u00" in body and _ESCAPED_LETTER.search(body) is not None)


def _fields(body: bytes) -> dict[str, Any] | None:
    """None: it is no JSON object, as the routes will say in their own words."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _model_in_header(scope: Scope) -> str:
    named = (value.decode("latin-1") for name, value in scope["headers"] if name == _SAGEMAKER_S_MODEL)
    return next(named, "")


def _with_model_in_header(scope: Scope, model: object) -> Scope:
    """SageMaker's wrapper of the route takes the model from this header alone. Without the header, it would
    remove the adapter's name from the body, so that the model itself would answer."""
    if not isinstance(model, str):
        return scope
    others = [header for header in scope["headers"] if header[0] != _SAGEMAKER_S_MODEL]
    return {**scope, "headers": [*others, (_SAGEMAKER_S_MODEL, model.encode())]}
