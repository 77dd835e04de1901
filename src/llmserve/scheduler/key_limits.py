"""The limits that a client's key has in the whole cluster."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """key: the id by which all apiservers and routers know the key; empty: there is no key. The others are
    None where there is no limit."""

    key: str = ""
    requests_per_second: float | None = None
    tokens_per_second: float | None = None
    max_requests_in_flight: int | None = None

    def __bool__(self) -> bool:
        """Returns whether there is any limit to hold."""
        limits = (self.requests_per_second, self.tokens_per_second, self.max_requests_in_flight)
        return bool(self.key) and any(limit is not None for limit in limits)


NO_LIMITS = KeyLimits()
