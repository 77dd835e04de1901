"""The time an engine takes to compute a block of a prompt, learnt from its own steps."""

from collections import deque

# Each new step replaces this share of the estimate: a dozen prompts after a change it is forgotten.
_NEW_SHARE = 0.2


class BlockCost:
    """The scheduler reports each of its steps in order; several may run at once. Pure."""

    def __init__(self, block_size_tokens: int) -> None:
        self._block_size = block_size_tokens
        self._steps: deque[tuple[int, float]] = deque()  # their tokens, and when they were given out
        self._last_end = float("-inf")
        self._token_seconds = 0.0

    @property
    def block_seconds(self) -> float:
        """0 while nothing of a prompt has been computed."""
        return self._token_seconds * self._block_size

    def begins(self, tokens: int, now: float) -> None:
        self._steps.append((tokens, now))

    def ended(self, now: float) -> None:
        """Ignores a step with less than a block of tokens: it decodes, and its time goes into other
        things."""
        if not self._steps:
            return
        tokens, given_out = self._steps.popleft()
        took = now - max(given_out, self._last_end)
        self._last_end = now
        if tokens < self._block_size:
            return
        share = _NEW_SHARE if self._token_seconds else 1.0
        self._token_seconds += share * (took / tokens - self._token_seconds)
