"""`service_tier`, OpenAI's word for a request's priority: what it asks for, and what its key may have."""

from collections.abc import AsyncGenerator, Mapping
from types import MappingProxyType
from typing import Any

from llmserve.apiserver.http.scope import current_scope
from llmserve.core.errors import InvalidRequest
from llmserve.core.request import MOST_PRIORITY

_FIELD = "service_tier"
_DEFAULT = "default"
# A smaller priority is served earlier.
_PRIORITIES: Mapping[str, int] = MappingProxyType(
    {"priority": -MOST_PRIORITY, "flex": MOST_PRIORITY, "auto": 0, _DEFAULT: 0, "scale": 0}
)
_EVENT = 'data: {"id"'


def grant_tier(request: Any) -> str | None:
    """Gives a request of OpenAI's API the priority of its tier, as far as its key may have it. Returns the
    tier that it gets; None when it names none. Errors: InvalidRequest."""
    asked = getattr(request, _FIELD, None)
    if asked is None:
        return None
    if asked not in _PRIORITIES:
        raise InvalidRequest(f"{_FIELD} is one of {', '.join(_PRIORITIES)}, got {asked!r}", field=_FIELD)
    most, priority = current_scope().caller.max_priority, _PRIORITIES[asked]
    granted = priority if most is None else max(priority, -most)
    if granted == 0:
        return _DEFAULT
    if request.priority != 0:
        raise InvalidRequest(f"{_FIELD} and priority say the same: send one of them", field=_FIELD)
    request.priority = granted
    return str(asked)


def with_tier(answer: Any, tier: str | None) -> Any:
    """Returns what vLLM answers (a response, or the events of a stream) with the tier in it."""
    if tier is None:
        return answer
    if isinstance(answer, AsyncGenerator):
        return _tiered(answer, tier)
    if hasattr(answer, _FIELD):
        answer.service_tier = tier
    return answer


async def _tiered(events: AsyncGenerator[str, None], tier: str) -> AsyncGenerator[str, None]:
    """Yields events with the tier as their first field, since vLLM's type of event has no such field."""
    mark = f'data: {{"{_FIELD}":"{tier}",'
    async for event in events:
        yield event.replace("data: {", mark, 1) if event.startswith(_EVENT) else event
