"""What somebody sees of a cluster who is no admin."""

from llmserve.overview.parts import for_tenant
from llmserve.overview.snapshot import Answers, snapshot
from llmserve.rpc.gen.llmserve.v1 import router_pb2
from tests.unit.apiserver.console.looks import table


def test_a_viewer_does_not_see_where_adapters_come_from() -> None:
    named = router_pb2.NamedAdapter(name="sql", parent="m", source="dir:/secret/adapters/sql")
    adapter = router_pb2.AdapterStatus(
        adapter=named, state="failed", error="dir:/secret/adapters/sql is gone"
    )
    place = adapter.places.add(worker_id="decode-0")
    place.report.message = "adapter 'dir:/secret/adapters/sql': /secret/cache is full"
    now = snapshot(table("decode-0"), Answers(adapters=(adapter,)), 0.0)
    assert "secret" in str(now.adapters)
    (seen,) = for_tenant(now, "red").adapters
    assert (seen["name"], seen["state"]) == ("sql", "failed")
    assert seen["workers"][0]["worker"] == "decode-0"
    assert "secret" not in str(seen)
