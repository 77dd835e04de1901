"""Which held block follows which: the prefix tree of one tier. Pure.

A block may be held while its parent is not (it went to another tier, or was corrupt). Then a placeholder
stands for the parent, as long as it has children, so that the tree is whole when the parent returns.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from llmserve.core.ids import BlockHash, TenantId


@dataclass(slots=True, eq=False)
class Node:
    """A block, or a placeholder (held is False). Siblings form a list, so a node costs no container."""

    key: BlockHash
    tenant: TenantId
    size_bytes: int = 0
    touched_at: float = 0.0
    pins: int = 0
    held: bool = False
    proven: bool = False
    parent: "Node | None" = None
    first_child: "Node | None" = None
    before: "Node | None" = None
    after: "Node | None" = None

    def children(self) -> "Iterator[Node]":
        child = self.first_child
        while child:
            yield child
            child = child.after


class PrefixTree:
    def __init__(self) -> None:
        self._nodes: dict[BlockHash, Node] = {}
        self._held = 0

    def __len__(self) -> int:
        """Held blocks."""
        return self._held

    def __iter__(self) -> Iterator[Node]:
        return (node for node in self._nodes.values() if node.held)

    def find(self, key: BlockHash) -> Node | None:
        """None: not held."""
        node = self._nodes.get(key)
        return node if node and node.held else None

    def followers(self, key: BlockHash) -> list[BlockHash]:
        """The held blocks right after a block, which need not be held."""
        node = self._nodes.get(key)
        return [child.key for child in node.children() if child.held] if node else []

    def add(self, key: BlockHash, parent: BlockHash | None, tenant: TenantId) -> Node:
        """A block that is not held becomes so."""
        assert key != parent, "a block does not follow itself"
        node = self._node(key, tenant)
        assert not node.held, "held already"
        node.tenant, node.held = tenant, True
        self._held += 1
        if parent is not None and node.parent is None:
            _attach(node, self._node(parent, tenant))
        return node

    def remove(self, node: Node) -> None:
        """A held block no longer is."""
        assert node.held, "not held"
        node.held, node.proven, node.pins = False, False, 0
        self._held -= 1
        self._prune(node)

    def check_integrity(self) -> None:
        for key, node in self._nodes.items():
            assert node.key == key
            assert node.held or node.first_child, "a placeholder for nothing"
            assert all(child.parent is node for child in node.children())
            assert node.parent is None or node in node.parent.children()
        assert self._held == sum(node.held for node in self._nodes.values())

    # -- parts

    def _node(self, key: BlockHash, tenant: TenantId) -> Node:
        node = self._nodes.get(key)
        if node is None:
            node = self._nodes[key] = Node(key, tenant)
        return node

    def _prune(self, node: Node) -> None:
        """Placeholders that stand for nothing go, up the branch."""
        at: Node | None = node
        while at and not at.held and not at.first_child:
            del self._nodes[at.key]
            parent = at.parent
            _detach(at)
            at = parent


def _attach(node: Node, parent: Node) -> None:
    node.parent, node.after = parent, parent.first_child
    if parent.first_child:
        parent.first_child.before = node
    parent.first_child = node


def _detach(node: Node) -> None:
    if node.before:
        node.before.after = node.after
    elif node.parent:
        node.parent.first_child = node.after
    if node.after:
        node.after.before = node.before
    node.parent = node.before = node.after = None


def leaves(top: Node, visited: set[Node]) -> Iterator[Node]:
    """Blocks at and below `top` that nothing held follows, but for those visited before. Notes its visits."""
    stack = [top]
    while stack:
        node = stack.pop()
        if node.after and node is not top:
            stack.append(node.after)
        if node in visited:
            continue
        visited.add(node)
        if node.first_child:
            stack.append(node.first_child)
        else:
            yield node
