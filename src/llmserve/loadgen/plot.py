"""Plots as SVG, without a plotting library."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 720, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 34, 44
_COLORS = ("#3b6fb6", "#d9822b", "#4b9b5f", "#a94f9b", "#8a6d3b", "#c0392b", "#17808f", "#777777")
_TICKS = 5
_ROUND_STEPS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """points: rising x. is_dots: points that are not joined."""

    name: str
    points: Sequence[Point]
    is_dots: bool = False


@dataclass(frozen=True, slots=True)
class _Frame:
    """Both axes begin at 0."""

    most_x: float
    most_y: float

    def x(self, value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * value / self.most_x

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / self.most_y


def plot(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """One SVG element."""
    points = [point for one in series for point in one.points]
    frame = _Frame(round_end([x for x, _ in points]), round_end([y for _, y in points]))
    drawn = [_drawn(one, frame, _COLORS[i % len(_COLORS)]) for i, one in enumerate(series)]
    body = "\n".join([*_axes(frame, x_label, y_label), *drawn, _names(series)])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n'
        f'<text x="{_LEFT}" y="18" font-weight="bold">{escape(title)}</text>\n{body}\n</svg>'
    )


def round_end(values: Sequence[float]) -> float:
    """The end of an axis for these values, none below 0: its marks are round numbers."""
    step = max(values, default=0.0) / _TICKS
    if step <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return _TICKS * power * next(one for one in _ROUND_STEPS if one >= step / power - 1e-9)


def cumulative(values: Sequence[float], points: int = 200) -> list[Point]:
    """x: a value, y: the share of values up to it, in percent. At most `points` of them, evenly by rank."""
    ordered = sorted(values)
    if not ordered:
        return []
    last = len(ordered) - 1
    count = min(points, len(ordered))
    ranks = sorted({round(last * i / max(1, count - 1)) for i in range(count)})
    return [(ordered[rank], 100 * (rank + 1) / len(ordered)) for rank in ranks]


def _drawn(one: Series, frame: _Frame, color: str) -> str:
    if one.is_dots:
        dots = (f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2"/>' for x, y in one.points)
        return f'<g fill="{color}" fill-opacity="0.6">{"".join(dots)}</g>'
    points = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in one.points)
    return f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>'


def _names(series: Sequence[Series]) -> str:
    """From the right, above the plot."""
    step = 110
    return "\n".join(
        f'<text x="{_WIDTH - _RIGHT - step * (len(series) - 1 - i)}" y="18" text-anchor="end" '
        f'fill="{_COLORS[i % len(_COLORS)]}">{escape(one.name)}</text>'
        for i, one in enumerate(series)
    )


def _axes(frame: _Frame, x_label: str, y_label: str) -> list[str]:
    marks = [i / _TICKS for i in range(_TICKS + 1)]
    right, middle = _WIDTH - _RIGHT, (_LEFT + _WIDTH - _RIGHT) / 2
    rows = [
        f'<line x1="{_LEFT}" x2="{right}" y1="{frame.y(at):.1f}" y2="{frame.y(at):.1f}" stroke="#dddddd"/>'
        f'<text x="{_LEFT - 6}" y="{frame.y(at) + 4:.1f}" text-anchor="end">{at:,.6g}</text>'
        for at in (mark * frame.most_y for mark in marks)
    ]
    columns = [
        f'<text x="{frame.x(at):.1f}" y="{_HEIGHT - 26}" text-anchor="middle">{at:,.6g}</text>'
        for at in (mark * frame.most_x for mark in marks)
    ]
    labels = (
        f'<text x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
        f'<text x="12" y="{_HEIGHT / 2}" text-anchor="middle" '
        f'transform="rotate(-90 12 {_HEIGHT / 2})">{escape(y_label)}</text>'
    )
    return [*rows, *columns, labels]
