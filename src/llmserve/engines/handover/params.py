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


def arriving_tokens(params: Mapping[str, Any] | None) -> int:
    """Of a prompt, how much another worker hands over; 0: it is all computed here. Errors: TransferError."""
    if not params or not params.get("do_remote_prefill"):
        return 0
    return (PushCard if is_pushed(params) else HandoverTicket).from_params(params).num_tokens


def _check_arrival(params: Mapping[str, Any], prompt_tokens: int) -> None:
    if not is_pushed(params):
        HandoverTicket.from_params(params)
        return
    card = PushCard.from_params(params)
    if card.num_tokens != prompt_tokens:
        raise TransferError(f"kv_transfer_params: num_tokens: the prompt has {prompt_tokens}")
