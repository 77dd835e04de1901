"""Group commit: writers that end at about the same time share one sync of their file."""

import asyncio
from concurrent.futures import Executor
from dataclasses import dataclass

from llmserve.kvstore.tiers.nvme.disk import SegmentFile
from llmserve.kvstore.tiers.nvme.threads import all_ended, run_one


@dataclass(slots=True)
class _Group:
    """running: a sync that began before some have ended their writes. following: the one for those."""

    running: asyncio.Task[None] | None = None
    following: asyncio.Task[None] | None = None


class GroupCommit:
    def __init__(self, threads: Executor) -> None:
        self._threads = threads
        self._groups: dict[SegmentFile, _Group] = {}

    async def wait(self, file: SegmentFile) -> None:
        """Until all that was written before this call is on the medium. Errors: OSError."""
        group = self._groups.setdefault(file, _Group())
        if group.following is None:
            group.following = asyncio.create_task(self._sync(file, group), name="nvme.commit")
        task = group.following
        await all_ended([task])
        task.result()

    async def _sync(self, file: SegmentFile, group: _Group) -> None:
        if group.running:
            await asyncio.wait([group.running])
        group.running, group.following = group.following, None
        try:
            await run_one(self._threads, file.sync)
        finally:
            if group.following is None:
                self._groups.pop(file, None)
