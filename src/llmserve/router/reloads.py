"""The manifest that the cluster runs with, and how a changed one takes its place.

First everybody is asked whether they could obey it; only when nobody objects does anybody. So a manifest
that is wrong, or that names a key which an apiserver does not have, changes nothing.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator

from llmserve.config.changes import Changes, compare
from llmserve.config.load import parse_manifest
from llmserve.config.schema import Manifest
from llmserve.core.errors import InvalidRequest, Unavailable
from llmserve.router.polls import Outcome
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from llmserve.rpc.reload import Reloaded

_log = logging.getLogger(__name__)

Ask = Callable[[router_pb2.Question], Awaitable[Outcome]]
Obey = Callable[[Manifest, Changes], None]


class Reloads:
    """ask: all apiservers. obey: the router itself."""

    def __init__(self, manifest: Manifest, ask: Ask, obey: Obey) -> None:
        self._started = self._last = manifest
        self._ask, self._obey = ask, obey
        self._one_at_a_time = asyncio.Lock()
        self._text = self._file = ""  # of the last reload, if there was one

    async def reload(self, text: str, file: str) -> Reloaded:
        """Errors: ManifestError with path and line; InvalidRequest or Unavailable when an apiserver cannot
        obey it, or does not say. Nothing is changed then."""
        manifest = parse_manifest(text, file)
        async with self._one_at_a_time:
            _raise_objection(await self._ask(_question(text, file, only_check=True)))
            changes = compare(self._started, self._last, manifest)
            self._last, self._text, self._file = manifest, text, file
            self._obey(manifest, changes)
            outcome = await self._ask(_question(text, file, only_check=False))
        reloaded = Reloaded(changes, tuple(_failures(outcome)))
        _log.info("reloaded %s: %s", file, "; ".join(reloaded.lines()))
        return reloaded

    def news(self) -> router_pb2.Question | None:
        """What an apiserver that comes now has perhaps not heard."""
        return _question(self._text, self._file, only_check=False) if self._text else None


def _question(text: str, file: str, *, only_check: bool) -> router_pb2.Question:
    return router_pb2.Question(
        manifest=router_pb2.ManifestQuestion(text=text, file=file, only_check=only_check)
    )


def _raise_objection(outcome: Outcome) -> None:
    for name, answer in outcome.answers.items():
        if answer.error:
            raise InvalidRequest(f"{name} cannot obey the manifest, nothing was changed: {answer.message}")
    if outcome.silent:
        names = ", ".join(sorted(outcome.silent))
        raise Unavailable(f"no answer from {names}: nothing was changed")


def _failures(outcome: Outcome) -> Iterator[str]:
    for name, answer in outcome.answers.items():
        if answer.error:
            yield f"{name}: {answer.message}"
    for name in sorted(outcome.silent):
        yield f"{name}: no answer"
