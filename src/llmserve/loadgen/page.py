"""A report as one HTML page that needs nothing else: no script, no other file."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from llmserve.core.stats import Percentiles
from llmserve.loadgen.answer import LoadRecord
from llmserve.loadgen.report import Group, LoadReport
from llmserve.plot import Point, Series, cumulative, plot

SPREAD_HEADS = ("milliseconds", "mean", "p50", "p90", "p95", "p99", "most")
"""Over a name and `spread_cells`."""

_STYLE = """
body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 800px; color: #222; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 } th, td { padding: .2em .7em; text-align: right }
td { white-space: nowrap } td:last-child { white-space: normal }
th:first-child, td:first-child { text-align: left } th { border-bottom: 1px solid #999; font-weight: 600 }
svg { width: 100%; margin: 1em 0 } .note { color: #a33 } dt { font-weight: 600 } dd { margin: 0 0 .4em 1em }
.verdict { font-size: 1.15em; border-left: 4px solid #3b6fb6; padding-left: .8em }
"""


def document(title: str, parts: Iterable[str]) -> str:
    """parts: pieces of HTML; empty ones are left out. title: plain text."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(filter(None, parts)) + "\n</body></html>\n"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts whose first column holds names."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def definitions(facts: Iterable[tuple[str, str]]) -> str:
    """Returns a list of terms, each with its text."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts) + "</dl>"


def spread_table(spreads: Iterable[tuple[str, Percentiles]]) -> str:
    return table(SPREAD_HEADS, [[name, *spread_cells(spread)] for name, spread in spreads])


def spread_cells(spread: Percentiles) -> list[str]:
    """The percentiles, given in seconds, as milliseconds."""
    values = (spread.mean, spread.p50, spread.p90, spread.p95, spread.p99, spread.most)
    return [f"{1000 * value:.1f}" for value in values]


def notes(texts: Iterable[str]) -> list[str]:
    return [f'<p class="note">{escape(text)}</p>' for text in texts]


_Times = Callable[[Sequence[LoadRecord]], Iterable[float]]


def distributions(groups: Mapping[str, Sequence[LoadRecord]]) -> list[str]:
    """One SVG element for each latency. groups: served requests, by name."""
    return [
        _distribution("Time to first token", "requests", groups, _first_tokens),
        _distribution("Between tokens", "gaps", groups, _gaps),
        _distribution("Time per output token", "requests", groups, _per_token),
        _distribution("End to end", "requests", groups, _ends),
    ]


def _distribution(title: str, what: str, groups: Mapping[str, Sequence[LoadRecord]], times: _Times) -> str:
    series = [
        Series(name, cumulative([1000 * seconds for seconds in times(records)]))
        for name, records in groups.items()
    ]
    return plot(title, "milliseconds", f"% of {what}", series)


def _first_tokens(records: Sequence[LoadRecord]) -> Iterable[float]:
    return (one.ttft for one in records)


def _gaps(records: Sequence[LoadRecord]) -> Iterable[float]:
    return (gap for one in records for gap in one.gaps)


def _per_token(records: Sequence[LoadRecord]) -> Iterable[float]:
    return (one.tpot for one in records if one.tpot is not None)


def _ends(records: Sequence[LoadRecord]) -> Iterable[float]:
    return (one.e2e for one in records)


# Of each kind: more than this a plot cannot show, and a page need not carry.
_MOST_DOTS = 2000


def page(report: LoadReport, records: Sequence[LoadRecord]) -> str:
    about = report.about
    title = f"{about.model} at {about.url}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        _facts(report),
        *notes(report.notes),
        spread_table(report.spreads.items()),
        _groups("kind", report.kinds),
        _groups("tenant", report.tenants) if len(report.tenants) > 1 else "",
        _groups("adapter", report.adapters) if report.adapters else "",
        _failures(report),
        *_plots(records),
    ]
    return document(title, parts)


def _facts(report: LoadReport) -> str:
    about = report.about
    facts = [
        ("Load", about.load),
        ("When", f"{about.started_at}, {report.seconds:.1f} s, seed {about.seed}, prompts: {about.prompts}"),
        ("Requests", f"{report.served} of {report.requests} served, {report.requests_per_second:.2f}/s"),
        (
            "Tokens",
            f"{report.prompt_tokens} of prompts ({report.cached_tokens} cached), "
            f"{report.output_tokens} of answers, {report.output_tokens_per_second:.1f}/s",
        ),
    ]
    if report.slo.asks:
        limits = ", ".join(f"{n} {s:g} s" for n in ("ttft", "itl", "e2e") if (s := getattr(report.slo, n)))
        facts.append(("Good", f"{report.good} within {limits}: {report.good_per_second:.2f}/s"))
    if report.fairness.jain is not None:
        seconds = report.fairness.contended_seconds
        facts.append(("Fairness", f"Jain index {report.fairness.jain:.3f} over {seconds} contended seconds"))
    return definitions(facts)


def _groups(name: str, groups: Iterable[Group]) -> str:
    rows = [
        [
            one.name,
            f"{one.served}/{one.requests}",
            str(one.prompt_tokens),
            str(one.output_tokens),
            *(f"{1000 * value:.1f}" for value in (one.ttft.p50, one.ttft.p99, one.tpot.mean, one.e2e.p50)),
        ]
        for one in groups
    ]
    heads = [name, "served", "prompt tokens", "output tokens", "ttft p50 ms", "ttft p99 ms"]
    return table([*heads, "per token ms", "e2e p50 ms"], rows)


def _failures(report: LoadReport) -> str:
    rows = [[one.label, str(one.count), one.message] for one in report.failures]
    return table(["failure", "requests", "the first one says"], rows) if rows else ""


def _plots(records: Sequence[LoadRecord]) -> list[str]:
    served = [record for record in records if record.served]
    kinds = sorted({record.kind for record in served})
    of = {kind: [record for record in served if record.kind == kind] for kind in kinds}
    over_time = [Series(kind, _thinned(of[kind]), is_dots=True) for kind in kinds]
    tokens = [Series("tokens/s", tokens_each_second(served))]
    running = [Series("requests", _running(records))]
    return [
        *distributions(of),
        plot("Time to first token as the run went on", "seconds", "milliseconds", over_time),
        plot("Output tokens", "seconds", "tokens in each second", tokens),
        plot("Requests on their way", "seconds", "requests", running),
    ]


def _thinned(records: Sequence[LoadRecord]) -> list[Point]:
    step = max(1, len(records) // _MOST_DOTS)
    return [(one.planned_at, 1000 * one.ttft) for one in records[::step]]


def tokens_each_second(records: Iterable[LoadRecord]) -> list[Point]:
    counts: defaultdict[int, float] = defaultdict(float)
    for record in records:
        now = record.first_at
        per_arrival = record.output_tokens / (len(record.gaps) + 1)
        counts[int(now)] += per_arrival
        for gap in record.gaps:
            now += gap
            counts[int(now)] += per_arrival
    return [(second, counts[second]) for second in range(max(counts, default=-1) + 1)]


def _running(records: Iterable[LoadRecord]) -> list[Point]:
    """The number of running requests at the beginning of each second."""
    changes: Counter[int] = Counter()
    for record in records:
        changes[int(record.sent_at) + 1] += 1
        changes[int(record.ended_at) + 1] -= 1
    points, running = [(0.0, 0.0)], 0
    for second in range(1, max(changes, default=0) + 1):
        running += changes[second]
        points.append((float(second), float(running)))
    return points
