"""Makes the KV managers drop the blocks of versions that are gone."""

from functools import partial

from llmserve.core.ids import AdapterDigest
from llmserve.router.adapters.lifecycle import AdapterLifecycle
from llmserve.router.kv_watch import KvWatch


class AdapterLeftovers:
    """`look` is called after each decision. When a version is loaded again before all managers have dropped
    it, the others keep it. What is not dropped when the term ends is left to the next leader."""

    def __init__(self, lifecycle: AdapterLifecycle, kv_watch: KvWatch) -> None:
        self._lifecycle, self._kv_watch = lifecycle, kv_watch
        self._asked: set[AdapterDigest] = set()

    def look(self) -> None:
        if self._asked == self._lifecycle.table.leftovers:
            return
        for digest in self._lifecycle.table.leftovers - self._asked:
            self._kv_watch.drop_adapter(digest, partial(self._dropped, digest))
        self._keep(self._asked - self._lifecycle.table.leftovers)
        self._asked = set(self._lifecycle.table.leftovers)

    def close(self) -> None:
        """Idempotent."""
        self._keep(self._asked)
        self._asked = set()

    # -- parts

    def _keep(self, digests: set[AdapterDigest]) -> None:
        for digest in digests:
            self._kv_watch.keep_adapter(digest)

    def _dropped(self, digest: AdapterDigest) -> None:
        self._asked.discard(digest)
        self._lifecycle.dropped(digest)
