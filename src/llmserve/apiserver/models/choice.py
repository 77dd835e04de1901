"""The choice of the model that a request is for.

An ASGI application around those of all models. It parses a body once, for itself and for the routes. What is
about no model in particular, such as `/health`, is answered by the application of the first that generates.
"""

import json
from typing import Any
from urllib.parse import parse_qs

from starlette.types import Message, Receive, Scope, Send

from llmserve.apiserver.adapters.choice import FIELD as LORA_PATH
from llmserve.apiserver.auth.permissions import CHOOSING_PATHS, GENERATING_PATHS, INVOCATIONS, POOLING_PATHS
from llmserve.apiserver.http.body import FIELDS, replay, with_fields
from llmserve.apiserver.http.scope import current_scope
from llmserve.apiserver.limits.fields import check_fields
from llmserve.apiserver.limits.media import check_media, may_have_urls
from llmserve.apiserver.models.door import ModelDoor
from llmserve.apiserver.models.doors import ModelDoors
from llmserve.config.schema import Security
from llmserve.core.errors import LLMServeError

# Those that describe a model, which `?model=` names.
_DESCRIBING_PATHS = frozenset({"/tokenizer_info", "/model"})
_RESPONSES = "/v1/responses/"
_SAGEMAKER_S_MODEL = b"x-amzn-sagemaker-adapter-identifier"


class ModelChoice:
    """security: what a body may ask for. Errors of a call: NotFound for an unknown model; InvalidRequest;
    those of AdapterChoice."""

    def __init__(self, doors: ModelDoors, security: Security) -> None:
        self._doors, self._limits = doors, security.limits
        self._media_hosts = frozenset(security.allowed_media_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._doors.first.app(scope, receive, send)
            return
        try:
            if scope["method"] == "POST" and scope["path"] in CHOOSING_PATHS:
                door, scope, first = await self._by_body(scope, with_fields(await receive()))
                receive = replay(first, receive)
            else:
                door = self._by_path(scope)
        except LLMServeError as error:
            current_scope().explain.record.error = error.message
            raise
        await door.serve(scope, receive, send)

    def _by_path(self, scope: Scope) -> ModelDoor:
        path: str = scope["path"]
        if path.startswith(_RESPONSES):
            return self._doors.with_response(path.removeprefix(_RESPONSES).partition("/")[0])
        if path in _DESCRIBING_PATHS:
            named = parse_qs(scope["query_string"].decode("latin-1")).get("model", [""])
            return self._doors.named(named[-1])
        return self._doors.first

    async def _by_body(self, scope: Scope, first: Message) -> tuple[ModelDoor, Scope, Message]:
        """Returns the scope and the body's message as vLLM's layer is to see them."""
        fields, is_invocation = first[FIELDS], scope["path"] == INVOCATIONS
        if fields is None:
            return self._first_of_kind(scope), scope, first
        check_fields(fields, self._limits)
        if may_have_urls(first.get("body", b"")):
            check_media(fields, self._media_hosts)
        if is_invocation:
            fields["model"] = _model_in_header(scope) or fields.get("model")
        named = fields.get("model")
        if named is None and scope["path"] in GENERATING_PATHS:
            named = fields.get("model_id")
        if not isinstance(named or "", str):
            return self._first_of_kind(scope), scope, first
        door = self._doors.named(named, by_version=fields.get(LORA_PATH) is not None)
        current_scope().explain.record.model = door.name
        if await door.adapter_choice.apply(fields):
            first = {**first, "body": json.dumps(fields).encode()}
        return door, (_with_model_in_header(scope, fields["model"]) if is_invocation else scope), first

    def _first_of_kind(self, scope: Scope) -> ModelDoor:
        """Returns the model whose routes say in their own words what is wrong with a body."""
        return self._doors.first_that(generates=scope["path"] not in POOLING_PATHS)


def _model_in_header(scope: Scope) -> str:
    named = (value.decode("latin-1") for name, value in scope["headers"] if name == _SAGEMAKER_S_MODEL)
    return next(named, "")


def _with_model_in_header(scope: Scope, model: Any) -> Scope:
    """SageMaker's wrapper of the route takes the model from this header alone. Without the header, it would
    remove the adapter's name from the body, so that the model itself would answer."""
    if not isinstance(model, str):
        return scope
    others = [header for header in scope["headers"] if header[0] != _SAGEMAKER_S_MODEL]
    return {**scope, "headers": [*others, (_SAGEMAKER_S_MODEL, model.encode())]}
