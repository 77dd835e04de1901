"""What the processes of a cluster answer when they are asked how they are."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmserve.rpc.gen.llmserve.v1 import kvmanager_pb2, router_pb2

HEALTHY = "healthy"


@dataclass(frozen=True, slots=True)
class Answers:
    """What the cluster said. healths: HEALTHY, or why not, by the name of the process. router: the answer of
    the router that leads. leading: its address, empty when none leads. adapters: what it lists. kvmanager:
    the sum of all answers. A service that did not answer has its default here and a sentence in
    `problems`."""

    healths: Mapping[str, str] = field(default_factory=dict)
    router: router_pb2.GetClusterStatusResponse = field(default_factory=router_pb2.GetClusterStatusResponse)
    kvmanager: kvmanager_pb2.GetKvStatusResponse = field(default_factory=kvmanager_pb2.GetKvStatusResponse)
    problems: tuple[str, ...] = ()
    leading: str = ""
    adapters: tuple[router_pb2.AdapterStatus, ...] = ()
