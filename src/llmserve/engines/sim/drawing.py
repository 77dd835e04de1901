"""The tokens that a step of a simulated engine gives a sequence: one, and with speculative decoding one more
for each proposed token that was right."""

from collections.abc import Callable, Iterable

from llmserve.core.outcome import FinishReason, WorkerRole
from llmserve.engines.sim.scheduler import SimScheduler
from llmserve.engines.sim.sequence import SimSequence
from llmserve.engines.spec import EngineSpec


class TokenDrawing:
    """write: fills the blocks that became full. max_model_len: tokens of prompt and output together.

    The tokens are those that the sequence would have without proposals. The first one of an engine has had
    none, as in vLLM: nothing was proposed before there was a token to go on from."""

    def __init__(
        self,
        spec: EngineSpec,
        scheduler: SimScheduler[SimSequence],
        write: Callable[[Iterable[tuple[SimSequence, int]]], None],
        max_model_len: int,
    ) -> None:
        self._scheduler, self._write, self._max_model_len = scheduler, write, max_model_len
        self._acceptance = spec.engine.sim.acceptance
        proposes = spec.speculation is not None and spec.role is not WorkerRole.PREFILL
        self.proposed_tokens = spec.speculation.tokens if spec.speculation and proposes else 0

    def draw(self, sequence: SimSequence) -> tuple[list[int], FinishReason | None]:
        """Appends the tokens of a step that has just been committed. Returns them, and why they are the last
        ones; None: the sequence goes on."""
        proposed = self.proposed_tokens if sequence.output_tokens else 0
        tokens = [sequence.sample()]
        while (reason := sequence.finish_reason(self._max_model_len)) is None and len(tokens) <= proposed:
            if not self._was_proposed(sequence):
                break
            tokens.append(sequence.sample())
        if proposed:
            sequence.count_proposals(proposed, len(tokens) - 1)
        return tokens, reason

    def _was_proposed(self, sequence: SimSequence) -> bool:
        """Whether the last token was. Then its KV has been computed in the same step."""
        if not sequence.was_proposed(self._acceptance):
            return False
        filled = self._scheduler.accept(sequence)
        self._write(filled or ())
        return filled is not None
