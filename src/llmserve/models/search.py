"""Looks for models on the hub."""

from collections.abc import Sequence
from dataclasses import dataclass

from llmserve.core.errors import Unavailable
from llmserve.models.hub import is_offline

_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class HubModel:
    """gated: its terms must be accepted before it can be downloaded."""

    name: str
    downloads: int
    gated: bool


def search_hub(text: str, limit: int) -> Sequence[HubModel]:
    """Returns models with safetensors whose names have this text, those with most downloads first. Errors:
    Unavailable."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    wanted: dict[str, str | int] = {
        "search": text,
        "filter": "safetensors",
        "sort": "downloads",
        "limit": limit,
    }
    try:  # one request, since HfApi's tries again for most of a minute when there is no network
        answer = get_session().get(
            f"{constants.ENDPOINT}/api/models",
            params=wanted,
            headers=build_hf_headers(),
            timeout=_TIMEOUT_SECONDS,
        )
        hf_raise_for_status(answer)
        return [HubModel(one["id"], one.get("downloads", 0), bool(one.get("gated"))) for one in answer.json()]
    except Exception as error:  # the hub's client raises errors of three libraries
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        why = "HF_HUB_OFFLINE is set" if is_offline() else first
        raise Unavailable(f"the hub cannot be asked: {why}") from error
