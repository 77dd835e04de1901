"""The manifest in force beside the one in the file: what a reload would bring."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

from llmserve.apiserver.console.masking import masked
from llmserve.config.load import read_again
from llmserve.core.errors import InvalidRequest, LLMServeError
from llmserve.rpc.leader import Reloaded, RouterAddresses, reload_cluster

_CONTEXT_LINES = 3


@dataclass(frozen=True, slots=True)
class DiffLine:
    """A line of one of two texts, or of both. mark: "-": only the first has it; "+": only the second. before,
    after: its number in them; None: it is not there."""

    mark: str
    before: int | None
    after: int | None
    text: str


def diff(before: str, after: str) -> list[list[DiffLine]]:
    """Returns the places where two manifests differ, with some lines around each. A secret is masked, and
    differs all the same. Errors: ManifestError when one is not YAML."""
    lines, shown = (before.splitlines(), after.splitlines()), (masked(before), masked(after))
    texts = _Texts(*lines, *(text.splitlines() for text in shown))
    matcher = SequenceMatcher(None, texts.before, texts.after)
    return [
        [line for opcode in group for line in texts.lines(*opcode)]
        for group in matcher.get_grouped_opcodes(_CONTEXT_LINES)
    ]


@dataclass(frozen=True, slots=True)
class _Texts:
    """Lines as they are, which are compared, and as they are shown."""

    before: list[str]
    after: list[str]
    before_shown: list[str]
    after_shown: list[str]

    def lines(self, tag: str, i1: int, i2: int, j1: int, j2: int) -> Iterator[DiffLine]:
        """The arguments are those of an opcode of difflib."""
        if tag == "equal":
            for at in range(i2 - i1):
                yield DiffLine(" ", i1 + at + 1, j1 + at + 1, self.before_shown[i1 + at])
            return
        yield from (DiffLine("-", at + 1, None, self.before_shown[at]) for at in range(i1, i2))
        yield from (DiffLine("+", None, at + 1, self.after_shown[at]) for at in range(j1, j2))


class ManifestFile:
    """path: the file that the cluster was started with; None: there is none. in_force: returns the text with
    which this apiserver runs."""

    def __init__(self, path: Path | None, routers: RouterAddresses, in_force: Callable[[], str]) -> None:
        self._path, self._routers, self._in_force = path, routers, in_force

    async def reload(self) -> Reloaded:
        """Errors: as reload_cluster; ManifestError when the file is gone."""
        return await self._bring(await self._text(), only_check=False)

    async def view(self) -> dict[str, Any]:
        """Returns the manifest in force and what differs, without secrets. live, needs_restart: what a reload
        would change. problem: why the file, as it is now, cannot be brought to the cluster."""
        before = self._in_force()
        found: dict[str, Any] = {"diff": [], "live": [], "needs_restart": [], "failed": [], "problem": None}
        try:
            after = await self._text()
            found["diff"] = await asyncio.to_thread(diff, before, after)
            found |= (await self._bring(after, only_check=True)).as_json()
        except LLMServeError as error:
            found["problem"] = error.message
        file = str(self._path) if self._path else None
        return {"file": file, "text": await asyncio.to_thread(masked, before), **found}

    async def _text(self) -> str:
        if self._path is None:
            raise InvalidRequest("this apiserver runs without a manifest file: there is nothing to reload")
        return await asyncio.to_thread(read_again, self._path)

    async def _bring(self, text: str, *, only_check: bool) -> Reloaded:
        return await reload_cluster(self._routers, text, str(self._path), only_check=only_check)
