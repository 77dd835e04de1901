"""The choice of an adapter by the field `lora_path`, which vLLM's layer does not read."""

import time
from typing import Any

from llmserve.apiserver.adapters.manager import AdapterManager, name_for, read_source
from llmserve.apiserver.adapters.names import ModelAdapters
from llmserve.apiserver.adapters.version import RequestVersion
from llmserve.apiserver.http.scope import current_scope
from llmserve.config.messages import did_you_mean
from llmserve.core.adapters import NamedAdapter
from llmserve.core.errors import InvalidRequest, NotFound

FIELD = "lora_path"
_SOURCES = ("/", "dir:", "hub:", "s3://")


class AdapterChoice:
    """Gives a request the adapter's name as its `model`, so that all routes of vLLM's layer are alike for it,
    and notes the version in the request's scope. model: the name of the model itself."""

    def __init__(self, names: ModelAdapters, manager: AdapterManager, model: str) -> None:
        self._names, self._manager, self._model = names, manager, model

    async def apply(self, fields: dict[str, Any]) -> bool:
        """Puts the choice into the fields of a request's body. Returns whether there was any. Errors:
        InvalidRequest, NotFound; those of AdapterManager."""
        if fields.get(FIELD) is None:
            return False
        fields["model"] = await self._choose(fields.pop(FIELD), fields.get("model"))
        return True

    async def _choose(self, wanted: object, model: object) -> str:
        """Returns the adapter's name. wanted, model: these fields of the request."""
        if not isinstance(wanted, str) or not wanted:
            text = f"{FIELD} has to be the name, the digest or the source of one adapter"
            raise InvalidRequest(text, field=FIELD)
        scope, by_model = current_scope(), None
        if model not in (None, "", self._model):
            by_model = self._names.find(str(model))
            if by_model is None:
                raise NotFound(f"The model `{model}` does not exist.", field="model")
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
        scope, began, name = current_scope(), time.monotonic(), name_for(source, self._model)
        if not scope.caller.may_use_adapter(name):
            raise self._unknown(wanted)
        try:
            return await self._manager.load_for_request(name, source)
        finally:
            scope.waited_seconds = time.monotonic() - began

    def _unknown(self, wanted: str) -> NotFound:
        hint = did_you_mean(wanted, list(self._names))
        return NotFound(f"{FIELD}: there is no adapter {wanted!r}{hint}", field=FIELD)
