from llmserve.core.ids import DEFAULT_TENANT, BlockHash
from llmserve.kvstore.eviction.tree import Node, PrefixTree, leaves


def _add(tree: PrefixTree, name: str) -> Node:
    parent = BlockHash(name[:-1].encode()) if name[:-1] else None
    return tree.add(BlockHash(name.encode()), parent, DEFAULT_TENANT)


def _names(tree: PrefixTree, name: str, visited: set[Node] | None = None) -> list[str]:
    top = tree.find(BlockHash(name.encode()))
    assert top
    return [leaf.key.decode() for leaf in leaves(top, set() if visited is None else visited)]


def test_leaves_are_what_nothing_follows() -> None:
    tree = PrefixTree()
    for name in ("a", "ab", "abc", "abd", "ae", "x"):
        _add(tree, name)
    assert sorted(_names(tree, "a")) == ["abc", "abd", "ae"]
    assert _names(tree, "x") == ["x"]
    assert sorted(child.decode() for child in tree.followers(BlockHash(b"ab"))) == ["abc", "abd"]
    tree.check_integrity()


def test_no_leaf_is_visited_twice() -> None:
    tree = PrefixTree()
    for name in ("a", "ab", "ac", "ad"):
        _add(tree, name)
    visited: set[Node] = set()
    first = tree.followers(BlockHash(b"a"))[0].decode()
    assert _names(tree, first, visited) == [first]
    assert sorted([first, *_names(tree, "a", visited)]) == ["ab", "ac", "ad"]
    assert _names(tree, "a", visited) == []


def test_children_come_before_their_parent() -> None:
    tree = PrefixTree()
    child = _add(tree, "ab")
    assert len(tree) == 1
    assert tree.find(BlockHash(b"a")) is None
    _add(tree, "a")
    assert _names(tree, "a") == ["ab"]
    tree.remove(child)
    assert _names(tree, "a") == ["a"]
    tree.check_integrity()


def test_placeholders_go_with_what_they_stood_for() -> None:
    tree = PrefixTree()
    nodes = [_add(tree, name) for name in ("a", "ab", "abc")]
    for node in nodes:
        tree.remove(node)
        tree.check_integrity()
    assert len(tree) == 0
    assert not tree._nodes


def test_siblings_leave_in_any_order() -> None:
    for order in ((0, 1, 2), (2, 1, 0), (1, 0, 2)):
        tree = PrefixTree()
        _add(tree, "a")
        nodes = [_add(tree, name) for name in ("ab", "ac", "ad")]
        for number in order:
            tree.remove(nodes[number])
            tree.check_integrity()
        assert _names(tree, "a") == ["a"]


def test_a_block_is_added_without_size_pins_or_proof() -> None:
    node = _add(PrefixTree(), "a")
    assert (node.size_bytes, node.touched_at, node.pins, node.proven) == (0, 0.0, 0, False)


def test_only_a_block_that_follows_another_has_a_parent() -> None:
    tree = PrefixTree()
    first, second = _add(tree, "a"), _add(tree, "ab")
    assert first.parent is None
    assert second.parent is first


def test_a_block_that_returns_between_its_neighbours_follows_its_parent_once() -> None:
    tree = PrefixTree()
    _, middle, _, _ = (_add(tree, name) for name in ("a", "ab", "abc", "ax"))
    tree.remove(middle)
    assert _add(tree, "ab") is middle
    assert sorted(tree.followers(BlockHash(b"a"))) == [b"ab", b"ax"]
    tree.check_integrity()


def test_a_placeholder_that_returns_is_neither_proven_nor_pinned() -> None:
    tree = PrefixTree()
    parent = _add(tree, "a")
    _add(tree, "ab")
    parent.proven, parent.pins = True, 2
    tree.remove(parent)
    again = _add(tree, "a")
    assert again is parent
    assert (again.held, again.proven, again.pins) == (True, False, 0)
