"""Which connection has to go when too many have proved nothing."""

from llmserve.rpc.wires.accepting import UnprovenConnections


def test_there_is_room_for_some() -> None:
    unproven = UnprovenConnections[str](2)
    assert unproven.add("a", "10.0.0.1") is None
    assert unproven.add("b", "10.0.0.1") is None
    assert len(unproven) == 2


def test_the_oldest_goes_and_the_newest_is_let_in() -> None:
    unproven = UnprovenConnections[str](2)
    dropped = [unproven.add(name, "10.0.0.1") for name in "abcd"]
    assert dropped == [None, None, "a", "b"]
    assert list(unproven) == ["c", "d"]


def test_an_address_that_opens_many_pushes_out_its_own() -> None:
    unproven = UnprovenConnections[str](3)
    unproven.add("peer", "10.0.0.1")
    dropped = [unproven.add(name, "10.0.0.9") for name in "abcd"]
    assert dropped == [None, None, "a", "b"]
    assert "peer" in list(unproven)


def test_what_has_proved_itself_does_not_count() -> None:
    unproven = UnprovenConnections[str](1)
    unproven.add("a", "10.0.0.1")
    unproven.remove("a")
    unproven.remove("a")
    assert unproven.add("b", "10.0.0.1") is None
