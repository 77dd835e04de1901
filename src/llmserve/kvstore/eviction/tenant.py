"""One tenant's blocks in one tier: their order, their bytes, and the search for one that may go."""

from collections.abc import Callable
from math import inf

from llmserve.core.ids import TenantId
from llmserve.kvstore.eviction.base import EvictionPolicy
from llmserve.kvstore.eviction.tree import Node, PrefixTree, leaves

# Whether a tenant's blocks may be taken now.
Gives = Callable[[TenantId], bool]


class TenantBlocks:
    """A search that finds nothing is not repeated before something can have changed."""

    def __init__(self, tree: PrefixTree, policy: EvictionPolicy, hot_keep_seconds: float) -> None:
        self.policy = policy
        self.used_bytes = 0
        self.search_again_at = -inf
        self._tree, self._hot_keep_seconds = tree, hot_keep_seconds

    def candidate(self, gives: Gives, now: float) -> Node | None:
        """The block to go next: the policy's first choice or, if others follow that, one at its end.
        What follows a block is never used without it, so it is worth no more."""
        if now < self.search_again_at:
            return None
        search = _Search(self._tree, gives, self._hot_keep_seconds, now)
        found = search.first(self.policy)
        for pinned in search.pinned:
            self.policy.touch(pinned.key)  # it is in use: the next search does not begin with it
        if found is None:
            self.search_again_at = search.again_at
        return found


class _Search:
    """again_at: until when what was found to stay will stay, unless something is unpinned or removed."""

    def __init__(self, tree: PrefixTree, gives: Gives, hot_keep_seconds: float, now: float) -> None:
        self._tree, self._gives, self._now = tree, gives, now
        self._hot_keep_seconds = hot_keep_seconds
        self._visited: set[Node] = set()
        self.pinned: list[Node] = []
        self.again_at = inf

    def first(self, policy: EvictionPolicy) -> Node | None:
        for key in policy.candidates():
            node = self._tree.find(key)
            assert node, "the policy holds what the tier does not"
            if node.pins:
                self.pinned.append(node)
            elif leaf := self._free_leaf(node):
                return leaf
        return None

    def _free_leaf(self, top: Node) -> Node | None:
        for leaf in leaves(top, self._visited):
            if leaf.pins:
                continue
            cool_at = leaf.touched_at + self._hot_keep_seconds
            if cool_at > self._now:
                self.again_at = min(self.again_at, cool_at)
            elif self._gives(leaf.tenant):
                return leaf
            else:
                self.again_at = -inf  # what a tenant gives changes with what it holds
        return None
