"""Virtual time passes from event to event."""

from llmserve.core.clock import Agenda


def test_events_happen_in_the_order_of_time_and_then_of_writing() -> None:
    agenda, seen = Agenda(), list[tuple[str, float]]()
    for name, when in (("c", 2.0), ("a", 1.0), ("b", 1.0)):
        agenda.at(when, lambda name=name: seen.append((name, agenda.now)))  # type: ignore[misc]
    while agenda.step():
        pass
    assert seen == [("a", 1.0), ("b", 1.0), ("c", 2.0)]


def test_what_is_past_happens_now() -> None:
    agenda, seen = Agenda(), list[float]()
    agenda.at(5.0, lambda: agenda.at(1.0, lambda: seen.append(agenda.now)))
    while agenda.step():
        pass
    assert seen == [5.0]
