"""The parts of a page that needs nothing else: no script, no font, no other file."""

from collections.abc import Iterable, Sequence
from html import escape

from llmserve.core.stats import Percentiles

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
    """parts: HTML; empty ones are left out. title: text."""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(filter(None, parts)) + "\n</body></html>\n"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Of texts; the first column is of names."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def spread_cells(spread: Percentiles) -> list[str]:
    """Milliseconds of a spread in seconds."""
    values = (spread.mean, spread.p50, spread.p90, spread.p95, spread.p99, spread.most)
    return [f"{1000 * value:.1f}" for value in values]


def notes(texts: Iterable[str]) -> list[str]:
    return [f'<p class="note">{escape(text)}</p>' for text in texts]
