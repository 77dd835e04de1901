"""Why a request got its place when it did, and there: for its record at the apiserver. Pure."""

from llmserve.router.messages import Placed
from llmserve.router.plan import Candidate
from llmserve.rpc.gen.llmserve.v1 import router_pb2


def encode_report(placed: Placed) -> router_pb2.PlacementReport:
    standing = placed.standing
    return router_pb2.PlacementReport(
        requests_ahead=placed.requests_ahead,
        used_up_seconds=standing.used_up_seconds,
        tenant_weight=standing.weight,
        tenant_share=standing.share,
        candidates=[_candidate(one) for one in placed.plan.candidates],
        predicted_cached_tokens=placed.predicted_cached_tokens,
        note=placed.plan.note,
    )


def _candidate(one: Candidate) -> router_pb2.PlacementCandidate:
    seconds = {name: value for name, value in one.parts._asdict().items() if value}
    return router_pb2.PlacementCandidate(prefill=one.prefill or "", decode=one.decode, seconds=seconds)
