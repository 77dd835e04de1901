"""One simulated request between its arrival and its end."""

from dataclasses import dataclass

from llmserve.core.ids import RequestId
from llmserve.engines.sim.step import PullOrder
from llmserve.simulate.engine import VirtualEngine
from llmserve.simulate.request import Record
from llmserve.simulate.sequence import BlockNames, TracedSequence
from llmserve.traces.request import TracedRequest


@dataclass(slots=True, eq=False)
class Flight:
    """prefill, decode: the engines it was placed on; without prefill, decode does both. leased: blocks at
    prefill that decode has still to fetch. order: of decode's engine, that they be fetched."""

    request_id: RequestId
    record: Record
    names: BlockNames
    prefill: VirtualEngine | None = None
    decode: VirtualEngine | None = None
    leased: list[int] | None = None
    order: PullOrder[TracedSequence] | None = None
    pushed: bool = False

    @property
    def request(self) -> TracedRequest:
        return self.record.request
