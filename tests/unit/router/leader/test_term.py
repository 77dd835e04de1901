"""A router's terms: what it has from the manifest when the next one begins."""

import logging
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from llmserve.config.changes import compare
from llmserve.config.load import parse_manifest
from llmserve.config.schema import Manifest
from llmserve.core.clock import LeaseClock, SystemClock
from llmserve.core.tasks import TaskOwner
from llmserve.metrics.router import RouterMetrics
from llmserve.router.kv_watch import KvWatch
from llmserve.router.leader.election import LeaderStatus
from llmserve.router.leader.state import MemoryState, Term
from llmserve.router.leader.term import LeaderTerm, Manifests, TermParts
from llmserve.router.prefix.index import PrefixIndex
from llmserve.router.settings import RouterSettings


class _Granted:
    """A mandate."""

    def check(self) -> None: ...

    def status(self) -> LeaderStatus:
        return LeaderStatus(leads=True, leader="r:1")

    def promise(self, leader: str, epoch: int, seconds: float) -> bool:
        return False


class _Router:
    """One of two: the file is changed by the other's reloads, too."""

    def __init__(self) -> None:
        self.file = _manifest("info")
        index = PrefixIndex()
        metrics = RouterMetrics(CollectorRegistry())
        parts = TermParts(
            RouterSettings.of(self.file),
            SystemClock(),
            MemoryState(LeaseClock()),
            metrics,
            index,
            KvWatch((), index),
        )
        manifests = Manifests(self.file, lambda: self.file)
        self._term = LeaderTerm(parts, TaskOwner("test"), self._changed, manifests)
        self._term.open(_Granted())
        self._terms = 0

    async def _changed(self, leads: bool) -> None: ...

    async def begin(self) -> str:
        """Returns the level that its workers are told in the new term."""
        self._terms += 1
        await self._term.begin(Term(self._terms, "r:1"))
        return self._term.services.live.settings.log_level

    async def end(self) -> None:
        await self._term.end()

    def reload(self, manifest: Manifest) -> None:
        changes = compare(self.file, self.file, manifest)
        self.file = manifest
        self._term.services.live.apply(manifest, changes)


def _manifest(level: str) -> Manifest:
    text = (
        f"kind: LLMServe\nmodels: {{primary: {{source: 'hub:a/b'}}}}\nobservability: {{log_level: {level}}}\n"
    )
    return parse_manifest(text, "m.yaml")


@pytest.fixture(autouse=True)
def _level() -> Iterator[None]:
    """As an environment variable has set it at the start."""
    before = logging.getLogger().level
    logging.getLogger().setLevel(logging.ERROR)
    yield
    logging.getLogger().setLevel(before)


async def test_without_a_reload_each_process_keeps_its_log_level() -> None:
    router = _Router()
    for _ in range(2):
        assert await router.begin() == ""
        await router.end()
    assert logging.getLogger().level == logging.ERROR


async def test_a_log_level_that_another_leader_has_reloaded_holds() -> None:
    router = _Router()
    router.file = _manifest("debug")
    assert await router.begin() == "debug"
    assert logging.getLogger().level == logging.DEBUG
    await router.end()
    assert await router.begin() == "debug", "and in the term after that"
    await router.end()


async def test_a_log_level_that_another_leader_has_taken_back_is_taken_back() -> None:
    router = _Router()
    await router.begin()
    router.reload(_manifest("debug"))
    await router.end()
    router.file = _manifest("info")
    assert await router.begin() == "info"
    assert logging.getLogger().level == logging.INFO
    await router.end()
