"""Which transports this process can use, in the order of the manifest."""

from collections.abc import Callable, Mapping, Sequence

from llmserve.core.errors import TransportUnavailable
from llmserve.transfer.base import Transport
from llmserve.transfer.nixl import NixlTransport
from llmserve.transfer.tcp import TcpTransport
from llmserve.transfer.ucx import UcxTransport

LAST_RESORT = "tcp"


def makers(host: str) -> dict[str, Callable[[], Transport]]:
    """How each kind is made. host: the address of this machine that peers reach."""
    return {"nixl": NixlTransport, "ucx": UcxTransport, "tcp": lambda: TcpTransport(host)}


def make_transports(
    order: Sequence[str], host: str, known: Mapping[str, Callable[[], Transport]] | None = None
) -> tuple[list[Transport], dict[str, str]]:
    """Those that work here, each once, tcp always last; and for each other one of the order why it
    cannot be used. Called once by each process that holds KV.
    Errors: TransportUnavailable when not even tcp works."""
    known = makers(host) if known is None else known
    usable: list[Transport] = []
    unusable: dict[str, str] = {}
    for name in dict.fromkeys(kind for kind in order if kind != LAST_RESORT):
        if name not in known:
            unusable[name] = "not available in this version"
            continue
        try:
            usable.append(known[name]())
        except TransportUnavailable as error:
            unusable[name] = error.message
    usable.append(_last_resort(known, usable))
    return usable, unusable


def _last_resort(known: Mapping[str, Callable[[], Transport]], made: Sequence[Transport]) -> Transport:
    try:
        return known[LAST_RESORT]()
    except TransportUnavailable:
        for transport in made:
            transport.close()
        raise
