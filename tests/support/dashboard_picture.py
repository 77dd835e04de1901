"""A dashboard's data as SVG, of answers of Prometheus: to look at without a Grafana. Pure."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from llmserve.metrics.dashboards.panels import Dashboard, Panel, Unit

_COLUMNS, _WIDTH, _HEIGHT, _GAP, _HEAD = 3, 380, 190, 12, 30
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 10, 28, 34
_COLOURS = ("#3274d9", "#e0752d", "#56a64b", "#a352cc", "#e02f44", "#8f8f2f", "#2fa8a8", "#c15c9c")
_MOST_LETTERS = 65
_SCALES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"))
_SUFFIXES = {
    Unit.NONE: "",
    Unit.PER_SECOND: "/s",
    Unit.SECONDS: "s",
    Unit.BYTES: "B",
    Unit.BYTES_PER_SECOND: "B/s",
    Unit.BITS_PER_SECOND: "bit/s",
}


@dataclass(frozen=True, slots=True)
class Line:
    """points: (time, value), in seconds and the panel's unit."""

    legend: str
    points: Sequence[tuple[float, float]]


def svg(dashboard: Dashboard, data: Mapping[str, Sequence[Line]]) -> str:
    """data: the lines of each panel, by its title."""
    parts, top = [_text(_GAP, 20, dashboard.title, 15, "bold")], _HEAD
    for section in dashboard.sections:
        parts.append(_text(_GAP, top + 14, section.title, 12, "bold"))
        top += 22
        for index, panel in enumerate(section.panels):
            row, column = divmod(index, _COLUMNS)
            left = _GAP + column * (_WIDTH + _GAP)
            parts += _panel(panel, data.get(panel.title, ()), left, top + row * (_HEIGHT + _GAP))
        top += -(-len(section.panels) // _COLUMNS) * (_HEIGHT + _GAP)
    width = _GAP + _COLUMNS * (_WIDTH + _GAP)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{width}" height="{top}" fill="#f4f5f5"/>', *parts, "</svg>\n"])


def _panel(panel: Panel, lines: Sequence[Line], left: int, top: int) -> Iterator[str]:
    yield f'<rect x="{left}" y="{top}" width="{_WIDTH}" height="{_HEIGHT}" fill="#fff" stroke="#ddd"/>'
    yield _text(left + 8, top + 17, panel.title, 12, "bold")
    shown = [line for line in map(_finite, lines) if line.points]
    if not shown:
        yield _text(left + _WIDTH // 2 - 25, top + _HEIGHT // 2, "no data", 11)
        return
    box = _Box.of(shown, left + _LEFT, top + _TOP)
    for share in (0.0, 0.5, 1.0):
        y = box.y(box.most * share)
        yield f'<line x1="{box.left}" x2="{box.right}" y1="{y}" y2="{y}" stroke="#eee"/>'
        yield _text(left + 4, y + 3, _number(box.most * share, panel.unit), 9)
    for index, line in enumerate(shown):
        points = " ".join(f"{box.x(time)},{box.y(value)}" for time, value in line.points)
        colour = _COLOURS[index % len(_COLOURS)]
        yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    yield _legends([line.legend for line in shown], left + 8, top + _HEIGHT - 8)


def _legends(names: Sequence[str], left: int, y: int) -> str:
    """As many as there is room for, and how many more there are."""
    shown = [name for index, name in enumerate(names) if len("   ".join(names[: index + 1])) <= _MOST_LETTERS]
    spans = [
        f'<tspan dx="{8 if index else 0}" fill="{_COLOURS[index % len(_COLOURS)]}">{escape(name)}</tspan>'
        for index, name in enumerate(shown)
    ]
    more = f'<tspan dx="8">and {len(names) - len(shown)} more</tspan>' if len(names) > len(shown) else ""
    return f'<text x="{left}" y="{y}" font-size="9">{"".join(spans)}{more}</text>'


@dataclass(frozen=True, slots=True)
class _Box:
    """Where the lines are drawn, from 0 to most."""

    left: int
    top: int
    first: float
    last: float
    most: float

    @classmethod
    def of(cls, lines: Sequence[Line], left: int, top: int) -> "_Box":
        times = [time for line in lines for time, _ in line.points]
        most = max(value for line in lines for _, value in line.points)
        return cls(left, top, min(times), max(times), most if most > 0 else 1.0)

    @property
    def right(self) -> int:
        return self.left + _WIDTH - _LEFT - _RIGHT

    def x(self, time: float) -> float:
        span = self.last - self.first or 1.0
        return round(self.left + (time - self.first) / span * (self.right - self.left), 1)

    def y(self, value: float) -> float:
        height = _HEIGHT - _TOP - _BOTTOM
        return round(self.top + height * (1 - max(0.0, value) / self.most), 1)


def _finite(line: Line) -> Line:
    return Line(line.legend, [point for point in line.points if math.isfinite(point[1])])


def _number(value: float, unit: Unit) -> str:
    if unit is Unit.RATIO:
        return f"{value:.0%}"
    scale, letter = next((one for one in _SCALES if abs(value) >= one[0]), (1.0, ""))
    return f"{value / scale:.3g} {letter}{_SUFFIXES[unit]}".strip()


def _text(x: float, y: float, text: str, size: int, weight: str = "normal") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}">{escape(text)}</text>'
