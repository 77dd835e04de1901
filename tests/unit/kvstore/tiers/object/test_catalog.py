"""Which blob is where, and what is garbage."""

from llmserve.kvstore.tiers.base import BlobKey
from llmserve.kvstore.tiers.object.catalog import Catalog, Pack
from llmserve.kvstore.tiers.object.layout import PackEntry


def key(number: int) -> BlobKey:
    return BlobKey(b"%032d" % number)


def pack(path: str, *numbers: int, mine: bool = True) -> Pack:
    entries = [PackEntry(key(number), 10 * at, 2, 100, number) for at, number in enumerate(numbers)]
    return Pack(path, 110 * len(numbers), entries, mine=mine)


def where(catalog: Catalog, number: int) -> str:
    place = catalog.find(key(number))
    return place.pack.path if place else ""


def test_what_was_added_is_found_with_its_entry() -> None:
    catalog = Catalog()
    catalog.add(pack("a", 1, 2))
    place = catalog.find(key(2))
    assert place is not None
    assert place.entry == PackEntry(key(2), 10, 2, 100, 2)
    assert (catalog.blobs, catalog.held_bytes, catalog.used_bytes) == (2, 200, 220)


def test_what_is_forgotten_is_garbage_in_its_pack() -> None:
    catalog = Catalog()
    catalog.add(pack("a", 1, 2, 3, 4))
    catalog.forget(key(2))
    catalog.forget(key(2))
    assert (catalog.blobs, catalog.held_bytes, catalog.used_bytes) == (3, 300, 440)
    assert catalog.removed() == {"a": [1]}
    assert catalog.to_rewrite(0.3) is None
    worst = catalog.to_rewrite(0.25)
    assert worst is not None
    assert worst.garbage_share == 0.25


def test_the_pack_with_most_garbage_comes_first_and_empty_ones_before() -> None:
    catalog = Catalog()
    for name, numbers in (("a", (1, 2)), ("b", (3, 4, 5, 6)), ("c", (7,))):
        catalog.add(pack(name, *numbers))
    for number in (1, 3, 4, 5, 7):
        catalog.forget(key(number))
    order = []
    while (worst := catalog.to_rewrite(0.5)) is not None:
        order.append(worst.path)
        worst.is_retiring = True
    assert order == ["c", "b", "a"]


def test_a_key_stays_where_it_was_first() -> None:
    catalog = Catalog()
    catalog.add(pack("a", 1))
    catalog.add(pack("b", 1, 2))
    assert (where(catalog, 1), where(catalog, 2)) == ("a", "b")
    assert catalog.removed() == {"b": [0]}


def test_a_rewritten_pack_takes_over_what_is_still_wanted() -> None:
    catalog, old = Catalog(), pack("old", 1, 2, 3)
    catalog.add(old)
    catalog.forget(key(2))
    catalog.add(pack("new", 1, 2, 3), instead_of=old)
    assert [where(catalog, number) for number in (1, 2, 3)] == ["new", "", "new"]
    assert old.live_count == 0
    assert catalog.drop(old) == 0
    assert (catalog.blobs, catalog.held_bytes, catalog.used_bytes) == (2, 200, 330)


def test_a_dropped_pack_takes_its_blobs_with_it_and_no_others() -> None:
    catalog, lost = Catalog(), pack("a", 1, 2)
    catalog.add(lost)
    catalog.add(pack("b", 3))
    catalog.forget(key(1))
    assert catalog.drop(lost) == 1
    assert catalog.drop(lost) == 0
    assert [where(catalog, number) for number in (1, 2, 3)] == ["", "", "b"]
    assert (catalog.blobs, catalog.used_bytes, catalog.removed()) == (1, 110, {})


def test_packs_of_others_are_read_but_neither_counted_nor_rewritten() -> None:
    catalog, theirs = Catalog(), pack("theirs", 1, 2, mine=False)
    catalog.add(theirs, garbage=[1])
    assert [where(catalog, number) for number in (1, 2)] == ["theirs", ""]
    catalog.forget(key(1))
    assert (catalog.blobs, catalog.held_bytes, catalog.used_bytes) == (0, 0, 0)
    assert (catalog.to_rewrite(0.0), catalog.removed()) == (None, {})
