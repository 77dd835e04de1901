"""Shares of tenants over time as an SVG image, without any plotting library."""

from collections.abc import Sequence
from html import escape

from llmserve.core.ids import TenantId
from llmserve.simulate.observed import Timeline

_WIDTH, _HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 110, 30, 40
_COLORS = ("#3b6fb6", "#d9822b", "#4b9b5f", "#a94f9b", "#8a6d3b", "#c0392b", "#17808f", "#777777")
# Seconds over which a share is taken: less shows single requests.
_WINDOW_SECONDS = 5


def shares_svg(timeline: Timeline, tenants: Sequence[TenantId], seconds: int, title: str) -> str:
    """Each tenant's part of the tokens computed in the last five seconds, in percent; times in seconds."""
    parts = [_curve(timeline, tenant, tenants, seconds, index) for index, tenant in enumerate(tenants)]
    body = "\n".join([_axes(seconds), *parts])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
        f'<text x="{_LEFT}" y="18" font-weight="bold">{escape(title)}</text>\n{body}\n</svg>\n'
    )


def shares(timeline: Timeline, tenant: TenantId, tenants: Sequence[TenantId], second: int) -> float:
    """Of the tokens computed in the window that ends with this second; 0 when there were none."""
    window = timeline.sums(range(max(0, second - _WINDOW_SECONDS + 1), second + 1))
    total = sum(window[one] for one in tenants)
    return window[tenant] / total if total else 0.0


def _x(second: float, seconds: int) -> float:
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * second / max(1, seconds - 1)


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share


def _curve(
    timeline: Timeline, tenant: TenantId, tenants: Sequence[TenantId], seconds: int, index: int
) -> str:
    values = [shares(timeline, tenant, tenants, second) for second in range(seconds)]
    points = " ".join(f"{_x(i, seconds):.1f},{_y(value):.1f}" for i, value in enumerate(values))
    color, right, low = _COLORS[index % len(_COLORS)], _WIDTH - _RIGHT + 8, _TOP + 16 * index + 10
    return (
        f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>\n'
        f'<text x="{right}" y="{low}" fill="{color}">{escape(tenant)}</text>'
    )


def _axes(seconds: int) -> str:
    right = _WIDTH - _RIGHT
    rows = [
        f'<line x1="{_LEFT}" x2="{right}" y1="{_y(share):.1f}" y2="{_y(share):.1f}" stroke="#dddddd"/>\n'
        f'<text x="{_LEFT - 6}" y="{_y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    marks = [
        f'<text x="{_x(second, seconds):.1f}" y="{_HEIGHT - 22}" text-anchor="middle">{second}</text>'
        for second in range(0, seconds, max(1, round(seconds / 8)))
    ]
    label = f'<text x="{(_LEFT + right) / 2}" y="{_HEIGHT - 6}" text-anchor="middle">seconds</text>'
    return "\n".join([*rows, *marks, label])
