"""Brings the manifest to the running cluster again: on request (SIGHUP), or when the file was changed."""

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from llmserve.config.load import parse_manifest, read_again
from llmserve.core.errors import LLMServeError
from llmserve.rpc.leader import Reloaded, RouterAddresses, reload_cluster
from llmserve.runner.preflight import check_reload

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0


async def reload_now(path: Path, routers: RouterAddresses, *, only_check: bool = False) -> Reloaded:
    """Reads and checks the manifest, and brings it to the cluster. only_check: changes nothing, and returns
    what it would. Errors: LLMServeError; nothing is changed then."""
    text = read_again(path)
    await asyncio.to_thread(check_reload, parse_manifest(text, str(path)), path)
    return await reload_cluster(routers, text, str(path), only_check=only_check)


class ManifestWatch:
    """Notices a change of a file once its contents have been the same for two looks: an editor that is
    still writing is not caught half-way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = self._digest()
        self._stamp = self._unsettled = self._stat()

    def changed(self) -> bool:
        """Call it every second. A file that is gone for a while has not changed."""
        stamp = self._stat()
        settled, self._unsettled = stamp == self._unsettled, stamp
        if stamp is None or not settled or stamp == self._stamp:
            return False
        self._stamp, before = stamp, self._known
        self._known = self._digest()
        return self._known != before

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = os.stat(self._path)
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _digest(self) -> bytes:
        try:
            return hashlib.sha256(self._path.read_bytes()).digest()
        except OSError:
            return b""


class Reloading:
    """Life: run, as one task; ask at any time, also from a signal handler. The result of each reload is
    printed and logged; a reload that fails does not end the task.

    watch: whether to look at the file.
    """

    def __init__(
        self, manifest: Path, routers: RouterAddresses, say: Callable[[str], None], *, watch: bool
    ) -> None:
        self._manifest, self._routers, self._say = manifest, routers, say
        self._watch = ManifestWatch(manifest) if watch else None
        self._asked = asyncio.Event()

    def ask(self) -> None:
        self._asked.set()

    async def run(self) -> None:
        while True:
            await self._wait()
            self._asked.clear()
            for line in await self._reload():
                self._say(line)
                _log.info("%s", line)

    async def _wait(self) -> None:
        while not self._asked.is_set():
            seconds = _LOOK_SECONDS if self._watch else None
            try:
                async with asyncio.timeout(seconds):
                    await self._asked.wait()
            except TimeoutError:
                if self._watch and self._watch.changed():
                    self._asked.set()

    async def _reload(self) -> list[str]:
        try:
            reloaded = await reload_now(self._manifest, self._routers)
        except LLMServeError as error:
            return [f"Reload: nothing was changed: {line}" for line in error.message.splitlines()]
        return [f"Reload: {line}" for line in reloaded.lines()]
