import re
from xml.etree import ElementTree

from llmserve.metrics.dashboards.panels import Dashboard, DashboardSection, Panel, Query, Unit
from tests.support.dashboard_picture import Line, svg

PANEL = Panel("Speed <of> it", "", Unit.BYTES_PER_SECOND, (Query("x", "a"),))
DASHBOARD = Dashboard("d", "All & more", "", (DashboardSection("One", (PANEL,)),))


def _texts(picture: str) -> list[str]:
    return [
        "".join(one.itertext()) for one in ElementTree.fromstring(picture).iter() if one.tag.endswith("text")
    ]


def test_lines_stay_within_their_panel_and_have_legends() -> None:
    lines = [Line("a", [(0, 0.0), (10, 2e6)]), Line("b", [(0, float("nan")), (10, 1e6)])]
    picture = svg(DASHBOARD, {PANEL.title: lines})
    assert {"All & more", "Speed <of> it", "2 MB/s", "0 B/s"} <= set(_texts(picture))
    first, second = re.findall(r'points="([^"]*)"', picture)
    assert (len(first.split()), len(second.split())) == (2, 1)
    low, high = (float(point.split(",")[1]) for point in first.split())
    assert low > high


def test_a_panel_without_numbers_says_so() -> None:
    assert "no data" in _texts(svg(DASHBOARD, {}))
    assert "no data" in _texts(svg(DASHBOARD, {PANEL.title: [Line("a", [(0, float("nan"))])]}))


def test_legends_end_where_their_panel_does() -> None:
    lines = [Line("x" * 30, [(0, 1.0)]) for _ in range(5)]
    assert f"{'x' * 30}{'x' * 30}and 3 more" in _texts(svg(DASHBOARD, {PANEL.title: lines}))
