"""A request that runs again from its prompt, for a user who has its first tokens already.

That is how a request goes on whose sampling keeps state from its first output token on (penalties,
a grammar, a seed): the engine builds that state up again by drawing the same tokens.
"""

from collections.abc import Sequence
from dataclasses import replace

from llmserve.core.errors import StreamLost
from llmserve.core.request import EngineOutput, Logprobs

_ITEM_BYTES = 4  # of token ids, logprobs and ranks alike


class Replay:
    """sent: the tokens that the user has. Take every output of the new run, in order."""

    def __init__(self, sent: Sequence[int]) -> None:
        self._sent = tuple(sent)
        self._seen = 0

    def unseen(self, output: EngineOutput) -> EngineOutput | None:
        """What of it is new to the user; None: nothing. Errors: StreamLost, as soon as a token differs or
        the run ends before it has reached the point where the other broke off."""
        known = self._sent[self._seen : self._seen + len(output.token_ids)]
        if tuple(output.token_ids[: len(known)]) != known:
            raise StreamLost(f"run again, it says something else after {self._seen} tokens")
        self._seen += len(known)
        if self._seen < len(self._sent) and output.finish_reason is not None:
            raise StreamLost(f"run again, it ends after {self._seen} of {len(self._sent)} tokens")
        if len(output.token_ids) > len(known) or output.finish_reason is not None:
            return _without_first(output, len(known))
        return None


def _without_first(output: EngineOutput, count: int) -> EngineOutput:
    logprobs = output.logprobs and _rows_from(output.logprobs, count)
    return replace(output, token_ids=output.token_ids[count:], logprobs=logprobs)


def _rows_from(logprobs: Logprobs, row: int) -> Logprobs:
    start = row * _ITEM_BYTES
    return Logprobs(
        logprobs.width,
        logprobs.token_ids[start * logprobs.width :],
        logprobs.logprobs[start * logprobs.width :],
        logprobs.ranks[start:],
    )
