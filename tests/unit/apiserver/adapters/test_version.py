"""When a request moves to the present version of its name."""

from llmserve.apiserver.adapters.version import RequestVersion
from llmserve.core.ids import AdapterDigest

ONE, TWO, THREE = map(AdapterDigest, "123")


def test_it_moves_once() -> None:
    present = TWO
    version = RequestVersion(ONE, lambda: present)
    assert version.digest == ONE
    assert version.moves_on(ONE)
    assert version.digest == TWO
    present = THREE
    assert not version.moves_on(TWO)
    assert version.digest == TWO


def test_another_sequence_follows_the_first_one() -> None:
    version = RequestVersion(ONE, lambda: TWO)
    assert version.moves_on(ONE)
    version.settle()
    assert version.moves_on(ONE)
    assert version.digest == TWO


def test_it_stays_once_a_sequence_has_a_place() -> None:
    version = RequestVersion(ONE, lambda: TWO)
    version.settle()
    assert not version.moves_on(ONE)
    assert version.digest == ONE


def test_it_stays_without_a_name_that_has_moved() -> None:
    for version in (RequestVersion(ONE), RequestVersion(ONE, lambda: ONE), RequestVersion(ONE, lambda: None)):
        assert not version.moves_on(ONE)
        assert version.digest == ONE
    assert not RequestVersion().moves_on(AdapterDigest(""))
