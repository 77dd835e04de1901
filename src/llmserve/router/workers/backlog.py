"""Prompts that one incarnation of a worker is to compute, and which of them it computed alone. Pure.

The router hears of first tokens late, and of those of several apiservers not in their order. Times are on its
clock, and say when something happened, not when it was heard of.
"""

from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class PlacedPrompt:
    """seconds: expected time to compute it alone. ended_at: when it had its first token, or was given up.
    alone: the worker computed no other prompt between these times. It is known, and may be true, once this
    prompt and all that were placed before it have ended."""

    seconds: float
    added_at: float
    ended_at: float | None = None
    alone: bool = False


class Backlog:
    """Prompts that were placed on the worker and have no first token. They are computed in the order of their
    placement. An engine's own report is a heartbeat old; this is known at once. prompts: their number, which
    every placement reads of every worker."""

    __slots__ = ("_placed", "_removed_at", "_seconds", "_settled_at", "prompts")

    def __init__(self) -> None:
        # In the order of their placement: those that have not ended, and those that are behind such a one.
        self._placed: dict[PlacedPrompt, None] = {}
        self._seconds = 0.0
        self._removed_at = float("-inf")  # when the latest ended, and the next could be begun
        self._settled_at = float("-inf")  # as _removed_at, of those that are in _placed no more
        self.prompts = 0

    def add(self, seconds: float, now: float) -> PlacedPrompt:
        """seconds: expected time to compute it alone."""
        prompt = PlacedPrompt(seconds, now)
        self._placed[prompt] = None
        self.prompts += 1
        self._seconds += seconds
        return prompt

    def remove(self, prompt: PlacedPrompt, ended_at: float) -> float:
        """The prompt has its first token, or is given up. Called once for each. Returns the seconds in which
        the worker computed it: since it was added, or since the one before it was done."""
        assert prompt.ended_at is None, prompt
        prompt.ended_at = ended_at
        self.prompts -= 1
        # If a prompt that ended later was heard of before, it is no prompt that this one waited for.
        begun_at = self._removed_at if self._removed_at <= ended_at else self._settled_at
        self._removed_at = max(ended_at, self._removed_at)
        # Rounding would add up: an empty backlog is empty.
        self._seconds = max(0.0, self._seconds - prompt.seconds) if self.prompts else 0.0
        self._settle()
        return max(0.0, ended_at - max(prompt.added_at, begun_at))

    def seconds(self, now: float) -> float:
        """Time until a prompt that is added now would be begun. The first prompt counts less the longer it
        runs; when it is overdue it takes nothing off the others."""
        if not self._placed:
            return 0.0
        first = next(iter(self._placed))
        return self._seconds - min(first.seconds, now - max(first.added_at, self._removed_at))

    def _settle(self) -> None:
        """Decides for each prompt, in the order of placement, whether it was alone: those before it ended
        before it was added, and the next was added after its end."""
        while (prompt := next(iter(self._placed), None)) and prompt.ended_at is not None:
            del self._placed[prompt]
            following = next(iter(self._placed), None)
            is_left_alone = following is None or following.added_at >= prompt.ended_at
            prompt.alone = self._settled_at <= prompt.added_at and is_left_alone
            self._settled_at = max(self._settled_at, prompt.ended_at)
