"""Brings the models of an apiserver in line with what the router tells: makes vLLM's layer for a model that
comes, and drops that of one that leaves."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Protocol

from llmserve.apiserver.options import ModelDirectory
from llmserve.config.schema import Manifest, ServedModel
from llmserve.config.wanted_models import AnsweringModels, ServedName
from llmserve.core.errors import LLMServeError
from llmserve.core.tasks import TaskOwner

_log = logging.getLogger(__name__)


class ServedLink(Protocol):
    """What is needed of the router. RouterLink is one. served: the models, as told last; None: nothing yet,
    or models do not come and go. served_changed: is set when that changes."""

    served: tuple[ServedName, ...] | None
    served_changed: asyncio.Event

    def answer_models(self, models: AnsweringModels) -> None: ...


AddModel = Callable[[ModelDirectory, Manifest], Awaitable[None]]
DropModel = Callable[[str, float], Coroutine[None, None, None]]


class ModelFollowing:
    """Adds and drops the models of this apiserver as the router says. Life: run, as one task, once the models
    of the manifest are there. add: makes a model, and returns when requests may name it. drop: ends a model,
    whose requests have so many seconds to end. directories: of the models of the manifest."""

    def __init__(
        self,
        manifest: Manifest,
        router: ServedLink,
        add: AddModel,
        drop: DropModel,
        directories: Mapping[str, Path],
    ) -> None:
        self._manifest, self._router = manifest, router
        self._add, self._drop_model, self._directories = add, drop, directories
        self._entries = dict.fromkeys(directories, "")  # of the models that are there
        self._failed: dict[tuple[str, str], str] = {}  # by name and entry
        self._drops = TaskOwner("dropped-models")

    def is_expected(self, name: str) -> bool:
        """Returns whether requests to this model should be served now. Those to one on its way wait."""
        known = {one.name: one for one in self._router.served or ()}
        return name not in known or known[name].declared or known[name].ready

    async def run(self) -> None:
        """Never returns."""
        try:
            while True:
                self._answer()
                await self._router.served_changed.wait()
                self._router.served_changed.clear()
                await self._follow()
        finally:
            await self._drops.aclose()

    async def _follow(self) -> None:
        """Models that come are there before others leave: one is always there."""
        served = self._router.served
        if served is None:
            return
        wanted = {one.name: one for one in served}
        self._failed = {
            key: why for key, why in self._failed.items() if key in {(one.name, one.entry) for one in served}
        }
        for one in served:
            known = self._entries.get(one.name)
            if known is not None and known != _identity(one) and (drop := self._drop(one.name)):
                await drop  # its name has to be free
            if one.name not in self._entries and (one.name, one.entry) not in self._failed:
                await self._make(one)
        for name in [name for name in self._entries if name not in wanted]:
            self._drop(name)

    async def _make(self, one: ServedName) -> None:
        directory = Path(one.directory) if one.directory else self._directories.get(one.name)
        if directory is None:
            return
        model = ServedModel.model_validate_json(one.entry)
        alone = self._manifest.model_copy(update={"models": (model,)})
        try:
            await self._add(ModelDirectory(one.name, directory), alone.for_model(one.name))
        except LLMServeError as error:
            _log.warning("model %s: its requests cannot be taken: %s", one.name, error.message)
            self._failed[one.name, one.entry] = error.message
        else:
            self._entries[one.name] = _identity(one)
        self._answer()

    def _drop(self, name: str) -> asyncio.Task[None] | None:
        """Returns a task that ends with the model's last request. None: it stays."""
        if len(self._entries) < 2:
            _log.warning("model %s is the last one here, and stays", name)
            return None
        del self._entries[name]
        drain_seconds = self._manifest.scheduling.drain_timeout_seconds
        return self._drops.spawn(name, self._drop_model(name, drain_seconds))

    def _answer(self) -> None:
        failed = {name: why for (name, _), why in self._failed.items()}
        self._router.answer_models(AnsweringModels(frozenset(self._entries), failed))


def _identity(one: ServedName) -> str:
    """Returns what makes another model of a name. Live keys of the manifest's own entry may change."""
    return "" if one.declared else one.entry
