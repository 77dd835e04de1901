"""Which transports this process can use, in the order of the manifest.

For trying out fallbacks, the environment variable LLMSERVE_FAULTS puts faults into them: a plan
(faults.py) for all, `fail_poll=1/16,seed=7`, or for some, `nixl: stall=1/8; tcp: delay=1/2 for 0.1s`.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence

from llmserve.core.errors import TransportUnavailable
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.transfer.base import HOST, Memory, Transport
from llmserve.transfer.collective import CollectiveTransport
from llmserve.transfer.devices import HostCopies, Staging
from llmserve.transfer.faults import FaultPlan
from llmserve.transfer.faulty import FaultyTransport
from llmserve.transfer.nixl import NixlTransport
from llmserve.transfer.shm import ShmTransport
from llmserve.transfer.tcp import TcpTransport
from llmserve.transfer.ucx import UcxTransport

ALWAYS = ("shm", "tcp")  # after those of the manifest
FAULTS_VARIABLE = "LLMSERVE_FAULTS"

LAST_RESORT = "tcp"
_log = logging.getLogger(__name__)


def makers(
    host: str, staging: Staging | None = None, credentials: Credentials = NO_CREDENTIALS
) -> dict[str, Callable[[], Transport]]:
    """How each kind of the manifest is made. host: the address of this machine that peers reach. staging: for
    the device that holds the memory to register; None for host memory. credentials: for transports with
    connections of their own; the others trust descriptions, which travel over connections that have them."""
    copies = staging.copies if staging else HostCopies()
    return {
        "nixl": lambda: NixlTransport(copies),
        "ucx": lambda: UcxTransport(staging),
        "nccl": lambda: CollectiveTransport(host, copies.memory.device, credentials),
        "shm": ShmTransport,
        "tcp": lambda: TcpTransport(host, staging, credentials),
    }


def make_transports(
    order: Sequence[str],
    host: str,
    known: Mapping[str, Callable[[], Transport]] | None = None,
    staging: Staging | None = None,
    credentials: Credentials = NO_CREDENTIALS,
) -> tuple[list[Transport], dict[str, str]]:
    """Those that work here, each once, shm and tcp always last; and for each other one why it cannot be
    used. Called once by each process that holds KV. staging, credentials: as
    for `makers`.
    Errors: TransportUnavailable when not even tcp works; InvalidRequest for wrong LLMSERVE_FAULTS."""
    _keep_ucx_at(host)
    known = makers(host, staging, credentials) if known is None else known
    memory = staging.copies.memory if staging else HOST
    usable: list[Transport] = []
    unusable: dict[str, str] = {}
    for name in dict.fromkeys([*(kind for kind in order if kind not in ALWAYS), *ALWAYS]):
        try:
            usable.append(_made(name, known, memory))
        except TransportUnavailable as error:
            unusable[name] = error.message
            _log.info("transport %s cannot be used: %s", name, error.message)
    _warn_of_plain(usable, host, credentials)
    if LAST_RESORT in unusable:
        for transport in usable:
            transport.close()
        raise TransportUnavailable(f"not even tcp can be used: {unusable[LAST_RESORT]}")
    faults = os.environ.get(FAULTS_VARIABLE, "")
    return [with_faults(transport, faults, staging) for transport in usable], unusable


def _keep_ucx_at(host: str) -> None:
    """UCX, and NIXL with it, listens on all networks of this machine and asks nobody who they are. Where all
    peers are on this machine, it listens on loopback only. An operator's own setting takes precedence."""
    if _is_loopback(host):
        os.environ.setdefault("UCX_NET_DEVICES", "lo")


def _warn_of_plain(usable: Sequence[Transport], host: str, credentials: Credentials) -> None:
    """With certificates, calls between hosts are encrypted, and KV is with some transports only."""
    names = [one.name for one in usable if one.name not in ALWAYS]
    if names and credentials.certificates is not None and not _is_loopback(host):
        _log.warning("KV between hosts is not encrypted by %s", ", ".join(names))


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host.startswith("127.")


def _made(name: str, known: Mapping[str, Callable[[], Transport]], memory: Memory) -> Transport:
    if name not in known:
        raise TransportUnavailable("not available in this version")
    transport = known[name]()
    if not transport.reaches(memory):
        transport.close()
        raise TransportUnavailable(f"{transport.name} does not reach {memory}")
    return transport


def with_faults(transport: Transport, text: str, staging: Staging | None = None) -> Transport:
    """The transport itself when nothing in the text is about it. Errors: InvalidRequest."""
    for part in filter(None, map(str.strip, text.split(";"))):
        names, colon, plan = part.rpartition(":")
        if not colon or transport.name in names.split():
            _log.warning("transport %s gets faults: %s", transport.name, plan)
            return FaultyTransport(transport, FaultPlan.parse(plan), staging=staging)
    return transport
