"""The schedulers of vLLM engines that speculate: their steps propose tokens only while that pays.

vLLM looks up how many tokens a step proposes in a table by batch size. In its place stands one that asks the
switch (switch.py).
"""

from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import MultiConnector
from vllm.platforms import current_platform
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from llmserve.core.clock import Clock, ProcessClock, SystemClock
from llmserve.engines.connector.connector import LLMServeConnector
from llmserve.engines.speculation.meter import GainRow, StepMeter
from llmserve.engines.speculation.switch import ProposalSwitch

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.engine import EngineCoreOutputs
    from vllm.v1.metrics.stats import SchedulerStats
    from vllm.v1.outputs import ModelRunnerOutput

SPECULATION = "speculation"  # in the statistics of the connector


class _SwitchedTable:
    """Stands for vLLM's list of the tokens to propose, by batch size."""

    def __init__(self, switch: ProposalSwitch) -> None:
        self._switch = switch

    def __getitem__(self, batch: int) -> int:
        return self._switch.proposals(batch)


def step_clock(ranks: int) -> Clock:
    """Returns the clock that times steps. On a CPU, a single rank computes in this process, whose own time
    tells what a step costs, however busy the machine is."""
    return ProcessClock() if current_platform.is_cpu() and ranks == 1 else SystemClock()


class SpeculatingScheduler(Scheduler):
    """Needs a table (num_speculative_tokens_per_batch_size). On a GPU, CUDA graphs are there for the numbers
    that the table has, so proposals are switched off only where it has 0, too."""

    dynamic_sd_lookup: Any  # vLLM's table; its entry for no request is not used

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        proposed = set(self.dynamic_sd_lookup[1:])
        self._meter: StepMeter | None = None
        if current_platform.is_cpu() or 0 in proposed:
            self._meter = StepMeter(
                ProposalSwitch(max(proposed)), step_clock(self.parallel_config.world_size)
            )
            self.dynamic_sd_lookup = _SwitchedTable(self._meter.switch)

    def schedule(self, throttle_prefills: bool = False) -> "SchedulerOutput":
        if self._meter is not None:
            self._meter.began()
        return super().schedule(throttle_prefills)

    def update_from_output(
        self, scheduler_output: "SchedulerOutput", model_runner_output: "ModelRunnerOutput"
    ) -> "dict[int, EngineCoreOutputs]":
        if self._meter is not None:
            self._meter.ended(scheduler_output, model_runner_output.sampled_token_ids)
        outputs: dict[int, EngineCoreOutputs]
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        return outputs

    def make_stats(self, *args: Any, **kwargs: Any) -> "SchedulerStats | None":
        """The last thing that vLLM does with the outcome of a step."""
        stats = super().make_stats(*args, **kwargs)
        if self._meter is None:
            return stats
        if not self.has_requests():
            self._meter.rests()
        report = self._meter.report()
        if stats is not None and report is not None:
            self._add(stats, report)
        return stats

    def _add(self, stats: "SchedulerStats", report: list[GainRow]) -> None:
        """The statistics of our connector carry what we want. With another connector beside it, they stand
        under its name."""
        every = stats.kv_connector_stats = dict(stats.kv_connector_stats or {})
        is_beside = isinstance(self.connector, MultiConnector)
        own = every.setdefault(LLMServeConnector.__name__, {}) if is_beside else every
        own[SPECULATION] = report


class AsyncSpeculatingScheduler(SpeculatingScheduler, AsyncScheduler):
    """The same where vLLM plans a step before it has the outcome of the one before."""
