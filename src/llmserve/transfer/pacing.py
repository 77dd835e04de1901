"""How many bytes may move now: a token bucket. Pure: the caller brings the time."""

_BURST_SECONDS = 0.05


class TokenBucket:
    """At most bytes_per_second over any longer time, and not more than 50 ms of it at once."""

    def __init__(self, bytes_per_second: float) -> None:
        self.burst_bytes = max(1, int(bytes_per_second * _BURST_SECONDS))
        self._rate = bytes_per_second
        self._free_at = float("-inf")

    def take(self, size_bytes: int, now: float) -> float:
        """Books the bytes, in the order of the calls; returns the seconds to wait before moving them."""
        start = max(self._free_at, now - _BURST_SECONDS)
        self._free_at = start + size_bytes / self._rate
        return max(0.0, self._free_at - now)
