"""Registrations are found by number, name and version until they are removed."""

from llmserve.core.ids import AdapterDigest
from llmserve.router.adapters.registration import AdapterWish, Registration
from llmserve.router.adapters.table import RegistrationTable

DIGEST = AdapterDigest("ab")


def test_they_are_found_until_they_are_removed() -> None:
    table = RegistrationTable()
    first = Registration(1, "m", AdapterWish("sql", "dir:/one"), digest=DIGEST)
    second = Registration(2, "m", AdapterWish("sql", "dir:/two"))
    other = Registration(3, "n", AdapterWish("sql", "dir:/one"), digest=DIGEST)
    for registration in (first, second, other):
        table.add(registration)
    assert (list(table), len(table), table.get(2)) == ([first, second, other], 3, second)
    assert (table.named("m", "sql"), table.named("m", "chat")) == ([first, second], [])
    assert (table.of_version("m", DIGEST), table.of_version("n", DIGEST)) == ([first], [other])
    second.digest = DIGEST
    table.index(second)
    assert table.of_version("m", DIGEST) == [first, second]
    table.remove(first)
    assert table.of_version("m", DIGEST) == [second]
    table.remove(second)
    assert (table.of_version("m", DIGEST), table.named("m", "sql"), table.get(1)) == ([], [], None)
    assert list(table) == [other]


def test_one_without_a_digest_has_no_version() -> None:
    table = RegistrationTable()
    registration = Registration(1, "m", AdapterWish("sql", "dir:/one"))
    table.add(registration)
    assert table.of_version("m", AdapterDigest("")) == []
    table.remove(registration)
    assert len(table) == 0
