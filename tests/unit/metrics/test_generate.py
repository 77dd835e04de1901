"""What is committed is what the definitions say."""

from pathlib import Path

import pytest

from llmserve.metrics.dashboards import DASHBOARDS
from llmserve.metrics.dashboards.panels import text
from llmserve.metrics.generate import generated, metrics_markdown, write

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("path", generated())
def test_a_committed_file_is_fresh(path: str, tmp_path: Path) -> None:
    for name in generated():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    write(tmp_path)
    written = (tmp_path / path).read_text()
    assert written == generated()[path]
    assert (ROOT / path).read_text() == written, "`make docs`"


def test_each_dashboard_has_a_file() -> None:
    files = generated()
    assert all(files[f"deploy/grafana/dashboards/{one.uid}.json"] == text(one) for one in DASHBOARDS)


def test_every_kind_is_on_the_page_of_metrics() -> None:
    page = metrics_markdown()
    for row in (
        "| `time_to_first_token_seconds` | histogram | `model` |",
        "| `router_requests_total` | counter | `outcome` |",
        "| `kv_orphan_blocks` | gauge |  |",
        "| `kv_leases_ended_total` | counter | `how` |",
    ):
        assert row in page
