from llmserve.core.recent import RecentMap


def test_it_gives_back_what_was_put() -> None:
    recent: RecentMap[str, int] = RecentMap(limit=4)
    recent.put("a", 1)
    assert recent.get("a") == 1
    assert recent.get("b") is None
    assert len(recent) == 1


def test_what_is_not_asked_for_is_forgotten() -> None:
    recent: RecentMap[int, int] = RecentMap(limit=4)
    for number in range(6):
        recent.put(number, number)
        assert len(recent) <= 4
    assert [recent.get(number) for number in (0, 1)] == [None, None]
    assert recent.get(5) == 5


def test_what_is_asked_for_stays() -> None:
    recent: RecentMap[int, int] = RecentMap(limit=4)
    recent.put(-1, -1)
    for number in range(10):
        recent.put(number, number)
        assert recent.get(-1) == -1
    assert len(recent) <= 4


def test_heavy_entries_take_the_room_of_several() -> None:
    recent: RecentMap[str, int] = RecentMap(limit=20)
    recent.put("heavy", 1, weight=10)
    recent.put("light", 2)
    assert recent.get("light") == 2
    recent.put("too heavy", 3, weight=11)
    assert recent.get("too heavy") is None
    for name in "abcdefghij":
        recent.put(name, 4)
    assert recent.get("heavy") is None


def test_an_entry_that_is_put_again_weighs_once() -> None:
    recent: RecentMap[str, int] = RecentMap(limit=4)
    recent.put("first", 1)
    for _ in range(5):
        recent.put("second", 2)
    assert recent.get("first") == 1
    assert len(recent) == 2
