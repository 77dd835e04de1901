"""Ratios with their intervals as SVG: a line for each, and where 1 is."""

import math
from collections.abc import Sequence
from html import escape

from llmserve.loadgen.contrast import Contrast, Finding

_WIDTH, _ROW, _LEFT, _RIGHT, _TOP, _BOTTOM = 720, 30, 230, 24, 40, 44
_COLORS = {Finding.BETTER: "#4b9b5f", Finding.WORSE: "#c0392b", Finding.SAME: "#777777"}
_MARKS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
# So that an interval is not the whole width when nothing differs.
_NARROWEST = 1.2
# Past this a ratio is drawn at the edge: the table has its figure.
_WIDEST = 20.0


def ratio_plot(title: str, found: Sequence[Contrast], label: str) -> str:
    """One SVG element. Logarithmic: half and double are equally far from 1."""
    most = _span(found)
    height = _TOP + _ROW * len(found) + _BOTTOM
    rows = [_row(one, _TOP + _ROW * (index + 0.5), most) for index, one in enumerate(found)]
    body = "\n".join([*_scale(most, height), *rows])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n'
        f'<text x="16" y="18" font-weight="bold">{escape(title)}</text>\n{body}\n'
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{height - 8}" text-anchor="middle">'
        f"{escape(label)}</text>\n</svg>"
    )


def _span(found: Sequence[Contrast]) -> float:
    """The axis goes from 1 / this to this."""
    ends = [end for one in found for end in (one.low, one.high) if end > 0]
    farthest = max((max(end, 1 / end) for end in ends), default=1.0)
    return min(_WIDEST, max(_NARROWEST, 1.05 * farthest))


def _x(ratio: float, most: float) -> float:
    inside = min(max(ratio, 1 / most), most)
    share = 0.5 + math.log(inside) / math.log(most) / 2
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _scale(most: float, height: int) -> list[str]:
    marks = [mark for mark in _MARKS if 1 / most <= mark <= most]
    return [
        f'<line x1="{_x(mark, most):.1f}" x2="{_x(mark, most):.1f}" y1="{_TOP}" y2="{height - _BOTTOM}" '
        f'stroke="{"#333333" if mark == 1 else "#dddddd"}"/>'
        f'<text x="{_x(mark, most):.1f}" y="{height - 26}" text-anchor="middle">{mark:g}</text>'
        for mark in marks
    ]


def _row(one: Contrast, y: float, most: float) -> str:
    color = _COLORS[one.finding]
    low, at, high = (_x(value, most) for value in (one.low, one.ratio, one.high))
    return (
        f'<text x="{_LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(one.figure)}</text>'
        f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{y}" y2="{y}" stroke="{color}" stroke-width="3"/>'
        f'<circle cx="{at:.1f}" cy="{y}" r="5" fill="{color}"/>'
    )
