"""A changed manifest takes the place of the one that the cluster runs with.

The router first asks every apiserver whether it could apply the manifest, and applies it only if none
objects. So a manifest that is wrong, or that names a key which an apiserver does not have, changes nothing.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

from llmserve.config.changes import Changes, compare
from llmserve.config.load import parse_manifest
from llmserve.config.schema import Manifest
from llmserve.core.errors import InvalidRequest, Unavailable
from llmserve.router.admin.broadcast import BroadcastResult
from llmserve.router.controller import Controller
from llmserve.router.event_loop import EventLoop
from llmserve.router.settings import RouterSettings
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.reload import Reloaded
from llmserve.rpc.role import set_log_level


class RouterLiveSettings:
    """The settings that the router has now."""

    def __init__(self, controller: Controller, event_loop: EventLoop, settings: RouterSettings) -> None:
        self.settings = settings
        self._controller, self._event_loop = controller, event_loop

    def apply(self, manifest: Manifest, changes: Changes) -> None:
        """Applies everything but the times of terms, which need a restart. Errors: NotLeader."""
        terms, level = self.settings.terms, self.settings.log_level
        if any(change.path == "observability.log_level" for change in changes.live):
            level = manifest.observability.log_level
        settings = replace(RouterSettings.of(manifest), terms=terms, log_level=level)
        with self._event_loop.deciding() as effects:
            effects += self._controller.reconfigure(settings)
        if level != self.settings.log_level:
            set_log_level(level)
        self.settings = settings


_log = logging.getLogger(__name__)

Ask = Callable[[router_pb2.Question], Awaitable[BroadcastResult]]
Apply = Callable[[Manifest, Changes], None]


class ManifestReload:
    """ask: asks all apiservers. apply: changes the router itself."""

    def __init__(self, manifest: Manifest, ask: Ask, apply: Apply) -> None:
        self._started = self._last = manifest
        self._ask, self._apply = ask, apply
        self._one_at_a_time = asyncio.Lock()
        self._text = self._file = ""  # of the last reload, if there was one

    async def reload(self, text: str, file: str) -> Reloaded:
        """Errors: ManifestError with path and line; InvalidRequest or Unavailable when an apiserver cannot
        apply the manifest, or does not answer. Nothing changes then."""
        manifest = parse_manifest(text, file)
        async with self._one_at_a_time:
            _raise_objection(await self._ask(_question(text, file, only_check=True)))
            changes = compare(self._started, self._last, manifest)
            self._last, self._text, self._file = manifest, text, file
            self._apply(manifest, changes)
            outcome = await self._ask(_question(text, file, only_check=False))
        reloaded = Reloaded(changes, tuple(_failures(outcome)))
        _log.info("reloaded %s: %s", file, "; ".join(reloaded.lines()))
        return reloaded

    def pending(self) -> router_pb2.Question | None:
        """Returns the question for an apiserver that joins now, and may have missed the last reload."""
        return _question(self._text, self._file, only_check=False) if self._text else None


def _question(text: str, file: str, *, only_check: bool) -> router_pb2.Question:
    return router_pb2.Question(
        manifest=router_pb2.ManifestQuestion(text=text, file=file, only_check=only_check)
    )


def _raise_objection(outcome: BroadcastResult) -> None:
    for name, answer in outcome.answers.items():
        if answer.error:
            raise InvalidRequest(f"{name} cannot obey the manifest, nothing was changed: {answer.message}")
    if outcome.silent:
        names = ", ".join(sorted(outcome.silent))
        raise Unavailable(f"no answer from {names}: nothing was changed")


def _failures(outcome: BroadcastResult) -> Iterator[str]:
    for name, answer in outcome.answers.items():
        if answer.error:
            yield f"{name}: {answer.message}"
    for name in sorted(outcome.silent):
        yield f"{name}: no answer"
