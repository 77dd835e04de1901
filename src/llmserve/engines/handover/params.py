"""kv_transfer_params of a request, whichever they are."""

from collections.abc import Mapping
from typing import Any

from llmserve.core.errors import TransferError
from llmserve.engines.handover.push.card import PushCard, is_pushed, transfer_of
from llmserve.engines.handover.ticket import HandoverTicket


def check_params(params: Mapping[str, Any] | None, prompt_tokens: int) -> None:
    """Before an engine takes the request. Errors: TransferError naming the field."""
    if not params:
        return
    if params.get("do_remote_prefill"):
        _check_arrival(params, prompt_tokens)
    elif params.get("do_remote_decode") and is_pushed(params):
        transfer_of(params)


def _check_arrival(params: Mapping[str, Any], prompt_tokens: int) -> None:
    if not is_pushed(params):
        HandoverTicket.from_params(params)
        return
    card = PushCard.from_params(params)
    if card.num_tokens != prompt_tokens:
        raise TransferError(f"kv_transfer_params: num_tokens: the prompt has {prompt_tokens}")
