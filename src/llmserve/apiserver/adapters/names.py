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


class AdapterNames(Mapping[str, AdapterRequest]):
    """The adapters that the caller of the current request may use, by name. It stands in the place of
    `OpenAIServingModels.lora_requests`. A version that the request has chosen by `lora_path` is what its name
    means, even when the name has moved on meanwhile. changed: is set at the next update, and
    replaced by a new one."""

    def __init__(self) -> None:
        self._requests: dict[str, AdapterRequest] = {}
        self.changed = asyncio.Event()

    def update(self, adapters: Iterable[NamedAdapter]) -> None:
        """Replaces all names."""
        self._requests = {adapter.name: _request(adapter) for adapter in adapters}
        self.changed.set()
        self.changed = asyncio.Event()

    def __getitem__(self, name: str) -> AdapterRequest:
        scope = current_scope()
        if scope.adapter is not None and scope.adapter.name == name:
            return _request(scope.adapter)
        if not scope.may_use(name):
            raise KeyError(name)
        return self._requests[name]

    def __iter__(self) -> Iterator[str]:
        scope = current_scope()
        return (name for name in self._requests if scope.may_use(name))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def find(self, wanted: str) -> NamedAdapter | None:
        """Returns the adapter of this name, digest or source; None when the caller may use no such one."""
        if wanted in self:
            return self[wanted].adapter
        known = (request.adapter for request in self.values())
        return next((one for one in known if wanted and wanted in (one.digest, one.source)), None)

    def meaning(self, name: str) -> NamedAdapter | None:
        """Returns the adapter that a name means, whoever asks; None: it means none."""
        request = self._requests.get(name)
        return request.adapter if request else None


def _request(adapter: NamedAdapter) -> AdapterRequest:
    """The number is vLLM's, for its engines: ours have numbers of their own."""
    return AdapterRequest(
        lora_name=adapter.name,
        lora_int_id=1,
        lora_path=adapter.source or engine_path(adapter.digest),
        base_model_name=adapter.parent or None,
        adapter=adapter,
    )
