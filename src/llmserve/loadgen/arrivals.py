"""When conversations start in the open loop: however long the answers take."""

import random
from collections.abc import Iterator


def arrivals(per_second: float, burstiness: float, rng: random.Random) -> Iterator[float]:
    """Rising seconds from the start, without end, after gaps of 1 / per_second on average. burstiness is the
    coefficient of variation of the gaps: 0 constant, 1 a Poisson process, above 1 bursts (gamma distributed).
    `vllm bench serve --burstiness` is 1 / burstiness**2."""
    mean, now = 1 / per_second, 0.0
    shape = 1 / burstiness**2 if burstiness else 0.0
    while True:
        now += rng.gammavariate(shape, mean / shape) if shape else mean
        yield now
