"""A comparison as one HTML page that needs nothing else: no script, no other file."""

from html import escape

from llmserve.core.stats import Percentiles
from llmserve.loadgen.answer import LoadRecord
from llmserve.loadgen.comparison import Comparison, ComparisonFinding, Contrast
from llmserve.loadgen.page import definitions, distributions, document, notes, spread_table, table
from llmserve.plot import RatioInterval, interval_plot

_COLORS = {
    ComparisonFinding.BETTER: "#4b9b5f",
    ComparisonFinding.WORSE: "#c0392b",
    ComparisonFinding.SAME: "#777777",
}


def comparison_page(one: Comparison) -> str:
    title = f"{one.base} and {one.other}: {one.about.model}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict">{escape(one.verdict)}</p>',
        _facts(one),
        *notes(one.notes),
        _figures(one),
        _ratios(one),
        _spreads(one),
        *distributions(one.served),
        _rounds(one),
    ]
    return document(title, parts)


def _facts(one: Comparison) -> str:
    about = one.about
    facts = [
        ("Load", f"{about.load}; prompts: {about.prompts}"),
        ("When", f"{about.started_at}, {len(one.rounds)} rounds, seeds from {about.seed} on"),
        ("Requests", "; ".join(map(one.served_words, one.names))),
        (
            "How sure",
            "95% intervals of a bootstrap over rounds and, in each, over requests that both served. A "
            "difference is one if its interval does not contain 1 and it is at least 2%.",
        ),
    ]
    return definitions(facts)


def _figures(one: Comparison) -> str:
    heads = ["", one.base, one.other, "ratio", "95%", "finding"]
    return table(heads, map(figure_cells, one.contrasts)) if one.contrasts else ""


def figure_cells(found: Contrast) -> list[str]:
    """The figure's name, both values, their ratio, its interval, and the finding."""
    scale, unit = (1000, "ms") if found.unit == "s" else (1, found.unit)
    return [
        found.figure,
        f"{found.base * scale:.1f} {unit}",
        f"{found.other * scale:.1f} {unit}",
        f"{found.ratio:.2f}",
        f"{found.low:.2f} to {found.high:.2f}",
        str(found.finding),
    ]


def _ratios(one: Comparison) -> str:
    if not one.contrasts:
        return ""
    label = f"{one.other} / {one.base}, with its 95% interval; green: {one.other} is better, red: worse"
    return interval_plot("What differs", label, list(map(ratio_row, one.contrasts)))


def ratio_row(found: Contrast) -> RatioInterval:
    return RatioInterval(found.figure, found.low, found.ratio, found.high, _COLORS[found.finding])


def _spreads(one: Comparison) -> str:
    """A table with each figure of both clusters, one below the other."""
    found = {name: _times(records) for name, records in one.served.items()}
    figures = next(iter(found.values()))
    return spread_table(
        (f"{figure}, {name}", found[name][figure]) for figure in figures for name in one.names
    )


def _times(records: list[LoadRecord]) -> dict[str, Percentiles]:
    return {
        "time to first token": Percentiles.of([record.ttft for record in records]),
        "between tokens": Percentiles.of([gap for record in records for gap in record.gaps]),
        "per output token": Percentiles.of([record.tpot for record in records if record.tpot is not None]),
        "end to end": Percentiles.of([record.e2e for record in records]),
    }


def _rounds(one: Comparison) -> str:
    rows = [
        [
            f"{number}, {name}",
            f"{report.served}/{report.requests}",
            f"{report.seconds:.1f}",
            f"{1000 * report.ttft.p50:.1f}",
            f"{1000 * report.e2e.p50:.1f}",
            f"{report.output_tokens_per_second:.1f}",
        ]
        for number, reports in enumerate(one.reports, 1)
        for name, report in reports.items()
    ]
    heads = ["round", "served", "seconds", "ttft p50 ms", "e2e p50 ms", "output tokens/s"]
    return table(heads, rows)
