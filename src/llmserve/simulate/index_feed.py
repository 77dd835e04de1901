"""Carries changes of the engines' caches to the router's prefix index. In a real cluster workers report
them to KV managers, which pass them on.
"""

from collections import Counter

from llmserve.core.clock import Agenda
from llmserve.core.ids import BlockHash, WorkerId
from llmserve.core.request import KvEvents
from llmserve.kvstore.directory.directory import Holder
from llmserve.kvstore.directory.watcher import DirectoryUpdate
from llmserve.router.prefix.index import PrefixIndex
from llmserve.simulate.engine import VirtualEngine
from llmserve.simulate.sequence import is_shared

_MANAGER = "simulated"
# As workers and KV managers do: changes are gathered, and sent this much later.
_GATHER_SECONDS = 0.05


class IndexFeed:
    """Fills `index`. Leaves out blocks that no other request begins with: nobody asks for them."""

    def __init__(self, agenda: Agenda) -> None:
        self.index = PrefixIndex()
        self.index.begin(_MANAGER)
        self._agenda = agenda
        self._gathering: set[WorkerId] = set()
        self._sequences: Counter[WorkerId] = Counter()

    def __repr__(self) -> str:
        return f"<IndexFeed {self.index!r} gathering={len(self._gathering)}>"

    def changed(self, engine: VirtualEngine) -> None:
        """The engine's cache holds other blocks than before."""
        if engine.worker_id not in self._gathering:
            self._gathering.add(engine.worker_id)
            self._agenda.at(self._agenda.now + _GATHER_SECONDS, lambda: self._tell(engine))

    def _tell(self, engine: VirtualEngine) -> None:
        self._gathering.remove(engine.worker_id)
        events = engine.pool.take_events()
        update = self._update(engine.worker_id, events)
        if update.removed or update.stored:
            self._sequences[engine.worker_id] = update.sequence
            applied = self.index.apply(_MANAGER, update)
            assert applied, update

    def _update(self, worker_id: WorkerId, events: KvEvents) -> DirectoryUpdate:
        sequence = self._sequences[worker_id] + 1
        stored = tuple(BlockHash(name) for name in events.stored if is_shared(name))
        removed = tuple(BlockHash(name) for name in events.removed if is_shared(name))
        return DirectoryUpdate(Holder(worker_id), sequence, sequence == 1, removed=removed, stored=stored)
