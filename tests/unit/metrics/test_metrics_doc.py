"""docs/metrics.md is what the code defines."""

from pathlib import Path

from llmserve.metrics.metrics_doc import markdown

PAGE = Path(__file__).parents[3] / "docs" / "metrics.md"


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text() == markdown(), "run `make docs`"


def test_every_kind_is_on_it() -> None:
    page = markdown()
    for row in (
        "| `time_to_first_token_seconds` | histogram |  |",
        "| `router_requests_total` | counter | `outcome` |",
        "| `kv_orphan_blocks` | gauge |  |",
        "| `kv_leases_ended_total` | counter | `how` |",
    ):
        assert row in page
