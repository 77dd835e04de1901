"""What a placement tells the router while its answer grows."""

from types import SimpleNamespace

from llmserve.apiserver.explain.record import SequenceRecord
from llmserve.apiserver.request.context import RequestInfo
from llmserve.apiserver.request.placement import RequestPlacement
from llmserve.core.ids import RequestId, TenantId


class Router:
    def __init__(self) -> None:
        self.reports: list[tuple[str, int]] = []

    def progress(self, request_id: str, output_tokens: int) -> None:
        self.reports.append((request_id, output_tokens))


def test_progress_is_reported_each_256_tokens() -> None:
    router, info = Router(), RequestInfo(RequestId("a"), TenantId("t"))
    context = SimpleNamespace(router=router)
    placement = RequestPlacement(info, context, [SequenceRecord()])  # type: ignore[arg-type]
    for tokens in (255, 1, 255, 300, 1):
        placement.generated += tokens
        if placement.generated >= placement.report_at:
            placement.report_progress()
    assert router.reports == [("a", 256), ("a", 811)]
    assert placement.report_at == 1024
