"""One tenant's blocks in one tier: their order, their bytes, and the search for one that may go."""

from collections.abc import Callable, Iterable
from itertools import islice
from math import inf

from llmserve.core.ids import BlockHash, TenantId
from llmserve.kvstore.eviction.base import BlockQueue, EvictionPolicy
from llmserve.kvstore.eviction.tree import Node, PrefixTree, leaves

# Whether a tenant's blocks may be taken now.
Gives = Callable[[TenantId], bool]
# Where blocks are kept hot, the policy's first choices may all be hot. After so many, age decides.
_HOT_CHOICES = 64


class TenantBlocks:
    """A search that finds nothing is not repeated before something can have changed."""

    def __init__(self, tree: PrefixTree, policy: EvictionPolicy, hot_keep_seconds: float) -> None:
        self.used_bytes = 0
        self.search_again_at = -inf
        self._tree, self._policy, self._hot_keep_seconds = tree, policy, hot_keep_seconds
        self._by_age = BlockQueue() if hot_keep_seconds else None

    def __len__(self) -> int:
        return len(self._policy)

    def add(self, node: Node) -> None:
        self._policy.add(node.key, node.size_bytes)
        if self._by_age is not None:
            self._by_age.push(node.key, node.size_bytes)
        self.used_bytes += node.size_bytes
        self.search_again_at = min(self.search_again_at, node.touched_at + self._hot_keep_seconds)

    def touch(self, node: Node) -> None:
        self._policy.touch(node.key)
        if self._by_age is not None:
            self._by_age.renew(node.key)

    def remove(self, node: Node, *, evicted: bool) -> None:
        self._policy.remove(node.key, evicted=evicted)
        if self._by_age is not None:
            self._by_age.pop(node.key)
        self.used_bytes -= node.size_bytes

    def candidate(self, gives: Gives, now: float) -> Node | None:
        """The block to go next: the policy's first choice or, if others follow that, one at its end.
        What follows a block is never used without it, so it is worth no more."""
        if now < self.search_again_at:
            return None
        search = _Search(self._tree, gives, self._hot_keep_seconds, now)
        found = self._search(search)
        for pinned in search.pinned:
            self._policy.touch(pinned.key)  # it is in use: the next search does not begin with it
        if found is None:
            self.search_again_at = search.again_at
        return found

    def check_integrity(self) -> None:
        self._policy.check_integrity()
        if self._by_age is not None:
            self._by_age.check_integrity()
            assert set(self._by_age) == set(self._policy.candidates())

    def _search(self, search: "_Search") -> Node | None:
        if self._by_age is None:
            return search.first(self._policy.candidates())
        chosen = search.first(islice(self._policy.candidates(), _HOT_CHOICES))
        return chosen or search.first(self._by_age, by_age=True)


class _Search:
    """again_at: until when what was found to stay will stay, unless something is unpinned or removed."""

    def __init__(self, tree: PrefixTree, gives: Gives, hot_keep_seconds: float, now: float) -> None:
        self._tree, self._gives, self._now = tree, gives, now
        self._hot_keep_seconds = hot_keep_seconds
        self._visited: set[Node] = set()
        self.pinned: list[Node] = []
        self.again_at = inf

    def first(self, keys: Iterable[BlockHash], *, by_age: bool = False) -> Node | None:
        """by_age: all that come after a hot block are hot."""
        for key in keys:
            node = self._tree.find(key)
            assert node, "the policy holds what the tier does not"
            if node.pins:
                self.pinned.append(node)
            elif by_age and self._is_hot(node):
                return None
            elif leaf := self._free_leaf(node):
                return leaf
        return None

    def _free_leaf(self, top: Node) -> Node | None:
        for leaf in leaves(top, self._visited):
            if leaf.pins or self._is_hot(leaf):
                continue
            if self._gives(leaf.tenant):
                return leaf
            self.again_at = -inf  # what a tenant gives changes with what it holds
        return None

    def _is_hot(self, node: Node) -> bool:
        cool_at = node.touched_at + self._hot_keep_seconds
        if cool_at <= self._now:
            return False
        self.again_at = min(self.again_at, cool_at)
        return True
