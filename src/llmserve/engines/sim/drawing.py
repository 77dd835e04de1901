"""The tokens that a step of a simulated engine gives a sequence: one, and with speculative decoding one more
for each proposed token that was right."""

from collections.abc import Callable, Iterable
from dataclasses import replace

from llmserve.core.request import Acceptance, FinishReason, WorkerRole
from llmserve.core.stats import SpeculationReport
from llmserve.engines.sim.scheduler import SimScheduler
from llmserve.engines.sim.sequence import SimSequence
from llmserve.engines.sim.step import Step
from llmserve.engines.spec import EngineSpec
from llmserve.engines.speculation.switch import ProposalSwitch


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
        self._sim, speculation = spec.engine.sim, spec.speculation
        proposes = speculation is not None and spec.role is not WorkerRole.PREFILL
        self._proposed = speculation.tokens if speculation and proposes else 0
        self._speculates = self._proposed > 0
        is_switched = bool(self._proposed and speculation and speculation.adaptive)
        self._switch = ProposalSwitch(self._proposed) if is_switched else None
        self._seconds: float | None = None  # of the step, if it is to be measured
        self._drawn_tokens = 0  # in the step
        self._totals = SpeculationReport()

    def began(self, step: Step[SimSequence], seconds: float) -> float:
        """Decides whether a planned step proposes tokens. seconds: of the step without. Returns those that it
        takes."""
        if self._switch is not None:
            self._proposed = self._switch.proposals(len(step.work))
        seconds += self._proposed * self._sim.proposed_token_seconds * step.decode_sequences
        self._seconds, self._drawn_tokens = None if step.prefill_tokens else seconds, 0
        return seconds

    def ended(self, step: Step[SimSequence]) -> None:
        """All of its tokens are drawn."""
        if self._switch is not None:
            self._switch.ended(
                len(step.work),
                proposed=self._proposed > 0,
                tokens=self._drawn_tokens,
                seconds=self._seconds,
            )

    def report(self) -> SpeculationReport | None:
        """None: nothing was proposed yet."""
        if not self._totals.verifications:
            return None
        return replace(self._totals, gains=tuple(self._switch.gains()) if self._switch else ())

    def acceptance(self, sequence: SimSequence) -> Acceptance | None:
        """Returns what became of the proposals for a sequence that has ended; None: the engine makes none."""
        if not self._speculates:
            return None
        report = self.report()
        return replace(sequence.acceptance, switched_off=report is not None and report.switched_off)

    def draw(self, sequence: SimSequence) -> tuple[list[int], FinishReason | None]:
        """Appends the tokens of a step that has just been committed. Returns them, and why they are the last
        ones; None: the sequence goes on."""
        proposed = self._proposed if sequence.output_tokens else 0
        tokens = [sequence.sample()]
        while (reason := sequence.finish_reason(self._max_model_len)) is None and len(tokens) <= proposed:
            if not self._was_proposed(sequence):
                break
            tokens.append(sequence.sample())
        if proposed:
            self._count(sequence, proposed, len(tokens) - 1)
        self._drawn_tokens += len(tokens)
        return tokens, reason

    def _was_proposed(self, sequence: SimSequence) -> bool:
        """Whether the last token was. Then its KV has been computed in the same step."""
        if not sequence.was_proposed(self._sim.acceptance):
            return False
        filled = self._scheduler.accept(sequence)
        self._write(filled or ())
        return filled is not None

    def _count(self, sequence: SimSequence, proposed: int, accepted: int) -> None:
        sequence.count_proposals(proposed, accepted)
        totals = self._totals
        self._totals = SpeculationReport(
            totals.verifications + 1, totals.proposed_tokens + proposed, totals.accepted_tokens + accepted
        )
