"""Shares of tenants over time as an SVG image."""

from collections.abc import Sequence

from llmserve.core.ids import TenantId
from llmserve.plot import Series, plot
from llmserve.simulate.observed import Timeline

# Seconds over which a share is taken: less shows single requests.
_WINDOW_SECONDS = 5


def shares_svg(timeline: Timeline, tenants: Sequence[TenantId], seconds: int, title: str) -> str:
    """Draws each tenant's part of the tokens computed in the last five seconds, in percent."""
    series = [
        Series(tenant, [(at, 100 * shares(timeline, tenant, tenants, at)) for at in range(seconds)])
        for tenant in tenants
    ]
    return plot(title, "seconds", "% of the tokens", series) + "\n"


def shares(timeline: Timeline, tenant: TenantId, tenants: Sequence[TenantId], second: int) -> float:
    """The tenant's part of the tokens in the window that ends with this second; 0 when there were none."""
    window = timeline.sums(range(max(0, second - _WINDOW_SECONDS + 1), second + 1))
    total = sum(window[one] for one in tenants)
    return window[tenant] / total if total else 0.0
