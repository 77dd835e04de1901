"""What the client is told of how its KV came from prefill to decode."""

from collections.abc import Sequence

from llmserve.core.request import HandoverReport

TRANSPORT = b"x-llmserve-transport"
MODE = b"x-llmserve-handover"
FALLBACK = b"x-llmserve-fallback"
_RECOMPUTED = "recomputed"
_LONGEST = 1000


def handover_headers(reports: Sequence[HandoverReport]) -> list[tuple[bytes, bytes]]:
    """Of all sequences of one HTTP request. x-llmserve-transport: what brought the KV, or "recomputed".
    x-llmserve-handover: whether it was pushed or pulled, if anything brought it.
    x-llmserve-fallback, if anything failed: each "transport: reason"."""
    if not reports:
        return []
    headers = [(TRANSPORT, _text(", ", [report.transport or _RECOMPUTED for report in reports]))]
    if modes := ["push" if report.pushed else "pull" for report in reports if report.transport]:
        headers.append((MODE, _text(", ", modes)))
    troubles = [trouble for report in reports for trouble in (*report.fallbacks, report.reason) if trouble]
    if troubles:
        headers.append((FALLBACK, _text("; ", troubles)))
    return headers


def _text(separator: str, parts: Sequence[str]) -> bytes:
    """Each part once, as a header value: one line of latin-1."""
    joined = separator.join(dict.fromkeys(parts))[:_LONGEST]
    return "".join(c if c.isprintable() else " " for c in joined).encode("latin-1", "replace")
