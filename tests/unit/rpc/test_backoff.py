"""Backoff grows to its bound, with jitter, and starts anew after a success."""

import random

from llmserve.rpc.backoff import Backoff


def test_grows_to_the_bound_and_resets() -> None:
    backoff = Backoff(0.1, 1.0, 2.0, random.Random(1))
    waits = [backoff.next() for _ in range(6)]
    for wait, full in zip(waits, [0.1, 0.2, 0.4, 0.8, 1.0, 1.0], strict=True):
        assert full / 2 <= wait <= full
    backoff.reset()
    assert backoff.next() <= 0.1
