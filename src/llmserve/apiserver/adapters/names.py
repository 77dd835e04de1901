"""The names of adapters, as vLLM's layer looks them up.

vLLM's layer takes a LoRARequest by `model` once for each HTTP request, and hands it to `generate` with each
prompt of it. So a request keeps the version that its name meant when it came.
"""

import asyncio
from collections.abc import Iterable, Iterator, Mapping

from vllm.lora.request import LoRARequest

from llmserve.apiserver.http.scope import current_scope
from llmserve.core.adapters import NamedAdapter, engine_path


class AdapterRequest(LoRARequest, kw_only=True):  # type: ignore[call-arg]  # untyped there
    """What vLLM's layer carries of an adapter. Its path is for `/v1/models`: nothing is read from it."""

    adapter: NamedAdapter


class AdapterNames:
    """What the router has told of the names of all models' adapters. A name is that of one adapter, whatever
    its model. changed: is set at the next update, and replaced by a new one."""

    def __init__(self) -> None:
        self.requests: dict[str, AdapterRequest] = {}
        self.changed = asyncio.Event()

    def update(self, adapters: Iterable[NamedAdapter]) -> None:
        """Replaces all names."""
        self.requests = {adapter.name: _request(adapter) for adapter in adapters}
        self.changed.set()
        self.changed = asyncio.Event()

    def meaning(self, name: str) -> NamedAdapter | None:
        """Returns the adapter that a name means, whoever asks; None: it means none."""
        request = self.requests.get(name)
        return request.adapter if request else None


class ModelAdapters(Mapping[str, AdapterRequest]):
    """The adapters of one model that the caller of the current request may use, by name. It stands in the
    place of `OpenAIServingModels.lora_requests`. A version that the request has chosen by `lora_path` is what
    its name means, even when the name has moved on meanwhile."""

    def __init__(self, names: AdapterNames, model: str) -> None:
        self._names, self._model = names, model

    def __getitem__(self, name: str) -> AdapterRequest:
        scope = current_scope()
        if scope.adapter is not None and scope.adapter.name == name:
            return _request(scope.adapter)
        request = self._names.requests[name]
        if request.adapter.parent != self._model or not scope.caller.may_use_adapter(name):
            raise KeyError(name)
        return request

    def __iter__(self) -> Iterator[str]:
        scope = current_scope()
        for name, request in self._names.requests.items():
            if request.adapter.parent == self._model and scope.caller.may_use_adapter(name):
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def find(self, wanted: str) -> NamedAdapter | None:
        """Returns the adapter of this name, digest or source; None when the caller may use no such one."""
        if wanted in self:
            return self[wanted].adapter
        known = (request.adapter for request in self.values())
        return next((one for one in known if wanted and wanted in (one.digest, one.source)), None)


def _request(adapter: NamedAdapter) -> AdapterRequest:
    """The number is vLLM's, for its engines: ours have numbers of their own."""
    return AdapterRequest(
        lora_name=adapter.name,
        lora_int_id=1,
        lora_path=adapter.source or engine_path(adapter.digest),
        base_model_name=adapter.parent or None,
        adapter=adapter,
    )
