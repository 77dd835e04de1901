"""Virtual time passes from event to event."""

import time

from llmserve.core.clock import Agenda, ProcessClock


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


def test_a_process_that_waits_takes_no_time_of_its_own() -> None:
    clock, began = ProcessClock(), time.monotonic()
    before = clock.now()
    time.sleep(0.05)
    assert clock.now() - before < 0.04 < time.monotonic() - began
    while time.monotonic() - began < 5 and clock.now() - before < 0.05:
        pass
    assert clock.now() - before >= 0.05
