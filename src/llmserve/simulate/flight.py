"""What a simulation keeps of a request that is under way."""

from dataclasses import dataclass

from llmserve.core.ids import RequestId
from llmserve.engines.sim.step import PullOrder
from llmserve.simulate.engine import VirtualEngine
from llmserve.simulate.observed import SimRecord
from llmserve.simulate.sequence import BlockNames, TracedSequence
from llmserve.traces import TracedRequest


@dataclass(slots=True, eq=False)
class Flight:
    """One simulated request between its arrival and its end. prefill, decode: engines that it was placed
    on; prefill None: decode does both. leased: blocks at prefill that decode still has to fetch. order:
    decode's order to fetch them."""

    request_id: RequestId
    record: SimRecord
    names: BlockNames
    prefill: VirtualEngine | None = None
    decode: VirtualEngine | None = None
    leased: list[int] | None = None
    order: PullOrder[TracedSequence] | None = None
    pushed: bool = False
    handover_seconds: float | None = None  # from prefill's token to decode's first one

    @property
    def request(self) -> TracedRequest:
        return self.record.request
