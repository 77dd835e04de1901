"""Plots as SVG, without a plotting library: curves or dots over two axes, and ratios with their intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT, _ROW_HEIGHT = 720, 260, 30
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 34, 44
_NAMES_WIDTH = 230  # of the rows of an interval plot
_COLORS = ("#3b6fb6", "#d9822b", "#4b9b5f", "#a94f9b", "#8a6d3b", "#c0392b", "#17808f", "#777777")
_TICKS = 5
_ROUND_STEPS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
_RATIO_MARKS = (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
# Least end of a ratio's axis, so that an interval is not the whole width when nothing differs.
_NARROWEST = 1.2
# Greatest end of a ratio's axis: a ratio past it is drawn at the edge.
_WIDEST = 20.0

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Series:
    """points: with rising x. is_dots: the points are not joined."""

    name: str
    points: Sequence[Point]
    is_dots: bool = False


@dataclass(frozen=True, slots=True)
class RatioInterval:
    """One row of an interval plot: a ratio between the ends of its interval."""

    name: str
    low: float
    ratio: float
    high: float
    color: str


def plot(title: str, x_label: str, y_label: str, series: Sequence[Series]) -> str:
    """Draws series over two axes that begin at 0, as one SVG element."""
    points = [point for one in series for point in one.points]
    frame = _Frame(round_end([x for x, _ in points]), round_end([y for _, y in points]))
    drawn = [_drawn(one, frame, _COLORS[i % len(_COLORS)]) for i, one in enumerate(series)]
    return _svg(title, _HEIGHT, [*_axes(frame, x_label, y_label), *drawn, _names(series)])


def interval_plot(title: str, label: str, rows: Sequence[RatioInterval]) -> str:
    """Draws ratios on a logarithmic axis, as one SVG element: half and double are equally far from 1."""
    axis = _RatioAxis.around(rows)
    height = _TOP + _ROW_HEIGHT * len(rows) + _BOTTOM
    drawn = [_interval(one, axis, _TOP + _ROW_HEIGHT * (index + 0.5)) for index, one in enumerate(rows)]
    middle = (_NAMES_WIDTH + _WIDTH - _RIGHT) / 2
    return _svg(title, height, [*axis.marks(height), *drawn, _text(middle, height - 8, label, "middle")])


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


@dataclass(frozen=True, slots=True)
class _Frame:
    most_x: float
    most_y: float

    def x(self, value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * value / self.most_x

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * value / self.most_y


@dataclass(frozen=True, slots=True)
class _RatioAxis:
    """The axis goes from 1 / most to most."""

    most: float

    @classmethod
    def around(cls, rows: Sequence[RatioInterval]) -> "_RatioAxis":
        ends = [end for one in rows for end in (one.low, one.high) if end > 0]
        farthest = max((max(end, 1 / end) for end in ends), default=1.0)
        return cls(min(_WIDEST, max(_NARROWEST, 1.05 * farthest)))

    def x(self, ratio: float) -> float:
        inside = min(max(ratio, 1 / self.most), self.most)
        share = 0.5 + math.log(inside) / math.log(self.most) / 2
        return _NAMES_WIDTH + share * (_WIDTH - _NAMES_WIDTH - _RIGHT)

    def marks(self, height: int) -> list[str]:
        return [
            _line(self.x(mark), self.x(mark), _TOP, height - _BOTTOM, "#333333" if mark == 1 else "#dddddd")
            + _text(self.x(mark), height - 26, f"{mark:g}", "middle")
            for mark in _RATIO_MARKS
            if 1 / self.most <= mark <= self.most
        ]


def _svg(title: str, height: int, parts: Sequence[str]) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="{escape(title)}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n'
        f'<text x="{_LEFT}" y="18" font-weight="bold">{escape(title)}</text>\n{body}\n</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{more}>{escape(text)}</text>'


def _line(x1: float, x2: float, y1: float, y2: float, color: str, width: float = 1) -> str:
    ends = f'x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{color}" stroke-width="{width:g}"/>'


def _drawn(one: Series, frame: _Frame, color: str) -> str:
    if one.is_dots:
        dots = (f'<circle cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="2"/>' for x, y in one.points)
        return f'<g fill="{color}" fill-opacity="0.6">{"".join(dots)}</g>'
    points = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in one.points)
    return f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>'


def _interval(one: RatioInterval, axis: _RatioAxis, y: float) -> str:
    return (
        _text(_NAMES_WIDTH - 10, y + 4, one.name, "end")
        + _line(axis.x(one.low), axis.x(one.high), y, y, one.color, 3)
        + f'<circle cx="{axis.x(one.ratio):.1f}" cy="{y}" r="5" fill="{one.color}"/>'
    )


def _names(series: Sequence[Series]) -> str:
    """The names of the series stand above the plot, from the right."""
    return "\n".join(
        _text(_WIDTH - _RIGHT - 110 * back, 18, one.name, "end", f' fill="{_COLORS[i % len(_COLORS)]}"')
        for i, one in enumerate(series)
        for back in (len(series) - 1 - i,)
    )


def _axes(frame: _Frame, x_label: str, y_label: str) -> list[str]:
    marks = [i / _TICKS for i in range(_TICKS + 1)]
    right, middle = _WIDTH - _RIGHT, _HEIGHT / 2
    rows = [
        _line(_LEFT, right, frame.y(at), frame.y(at), "#dddddd")
        + _text(_LEFT - 6, frame.y(at) + 4, f"{at:,.6g}", "end")
        for at in (mark * frame.most_y for mark in marks)
    ]
    columns = [
        _text(frame.x(at), _HEIGHT - 26, f"{at:,.6g}", "middle")
        for at in (mark * frame.most_x for mark in marks)
    ]
    turned = f' transform="rotate(-90 12 {middle})"'
    return [
        *rows,
        *columns,
        _text((_LEFT + right) / 2, _HEIGHT - 8, x_label, "middle"),
        _text(12, middle, y_label, "middle", turned),
    ]
