"""The page needs nothing else and takes nobody's word for markup."""

import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from llmserve.loadgen.answer import LoadRecord
from llmserve.loadgen.page import page, tokens_each_second
from llmserve.loadgen.report import About, Slo, make_report
from llmserve.plot import Series, cumulative, plot, round_end
from tests.unit.loadgen.records import failed, served

EVIL = "<script>alert(1)</script>&\"'"


def html(records: list[LoadRecord], name: str = "m") -> str:
    about = About(f"http://x/{name}", name, name, 1, name, name, (name,))
    return page(make_report(records, about, Slo.parse("ttft=1"), {}), records)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_names_and_messages_are_escaped() -> None:
    records = [served(tenant=EVIL, kind=EVIL), served(tenant="other"), failed(EVIL)]
    text = html(records, EVIL)
    tags = Tags()
    tags.feed(text)
    assert "script" not in {tag for tag, _ in tags.found}
    assert EVIL not in text
    assert "&lt;script&gt;" in text


def test_it_loads_nothing_from_elsewhere() -> None:
    tags = Tags()
    tags.feed(html([served()]))
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in tags.found}
    assert not any("src" in attributes or "href" in attributes for _, attributes in tags.found)


def test_every_plot_is_well_formed_with_and_without_requests() -> None:
    for records in ([], [failed()], [served(float(n), 0.1 * n, kind="ab"[n % 2]) for n in range(9)]):
        plots = re.findall(r"<svg.*?</svg>", html(records), flags=re.DOTALL)
        assert len(plots) == 7
        for one in plots:
            ElementTree.fromstring(one)


def test_figures_are_in_milliseconds() -> None:
    assert "<td>time to first token</td><td>500.0</td>" in html([served(0.0, 0.5)])


def test_cumulative_shares_end_at_all_and_are_thinned() -> None:
    assert cumulative([]) == []
    assert cumulative([3.0]) == [(3.0, 100.0)]
    points = cumulative([float(value) for value in range(10_000)])
    assert len(points) == 200
    assert points[-1] == (9999.0, 100.0)


def test_points_lie_inside_the_plot() -> None:
    drawn = plot("t", "x", "y", [Series("a", [(0.0, 0.0), (10.0, 5.0)])])
    (points,) = re.findall(r'polyline points="([^"]+)"', drawn)
    assert points == "64.0,216.0 704.0,34.0"


def test_axes_end_at_round_numbers() -> None:
    for values, end in (
        ([], 1),
        ([0.0], 1),
        ([100.0], 100),
        ([335.0, 1.0], 400),
        ([1084.0], 1250),
        ([0.07], 0.075),
    ):
        assert round_end(values) == pytest.approx(end)
    drawn = plot("t", "x", "y", [Series("a", [(0.0, 0.0), (1084.0, 5.0)])])
    assert ">1,250</text>" in drawn


def test_no_token_is_lost_where_several_come_at_once() -> None:
    one = served(first=0.5, gaps=(0.1, 0.1, 0.4), output_tokens=6)
    assert tokens_each_second([one] * 3) == [(0, 13.5), (1, 4.5)]
