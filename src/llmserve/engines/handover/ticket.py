"""What a decode engine needs to fetch the KV of a finished prefill."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from llmserve.core.errors import TransferError
from llmserve.core.ids import LeaseId, WorkerId
from llmserve.core.pairs import KvPeer

_MAX_BLOCKS = 1 << 20
_MAX_RANKS = 1024


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """The side channel of one rank of one incarnation of a worker."""

    worker_id: WorkerId
    epoch: int
    endpoint: str


@dataclass(frozen=True, slots=True)
class HandoverTicket:
    """endpoints: "host:port" of the side channel of each tensor-parallel rank, in rank order.
    block_ids: those of the owner, in prompt order; the last one may be partly filled."""

    worker_id: WorkerId
    epoch: int
    lease_id: LeaseId
    endpoints: tuple[str, ...]
    block_ids: tuple[int, ...]
    num_tokens: int
    block_size_tokens: int
    lease_seconds: float

    def address(self, rank: int) -> PeerAddress:
        """Errors: TransferError for a rank that the owner does not have."""
        if not 0 <= rank < len(self.endpoints):
            raise TransferError(f"the ticket has no endpoint for rank {rank}")
        return PeerAddress(self.worker_id, self.epoch, self.endpoints[rank])

    def to_params(self) -> dict[str, Any]:
        """kv_transfer_params: JSON types only."""
        return {
            "do_remote_prefill": True,
            "worker_id": self.worker_id,
            "epoch": self.epoch,
            "lease_id": self.lease_id,
            "endpoints": list(self.endpoints),
            "block_ids": list(self.block_ids),
            "num_tokens": self.num_tokens,
            "block_size_tokens": self.block_size_tokens,
            "lease_seconds": self.lease_seconds,
        }

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> "HandoverTicket":
        """Errors: TransferError naming the field, for anything `to_params` cannot have made."""
        if params.get("do_remote_prefill") is not True:
            raise _wrong("do_remote_prefill", "must be true")
        ticket = cls(
            worker_id=WorkerId(_text(params, "worker_id")),
            epoch=_integer(params, "epoch", 0),
            lease_id=LeaseId(_text(params, "lease_id")),
            endpoints=_endpoints(params),
            block_ids=_block_ids(params),
            num_tokens=_integer(params, "num_tokens", 1),
            block_size_tokens=_integer(params, "block_size_tokens", 1),
            lease_seconds=_seconds(params),
        )
        if len(ticket.block_ids) != -(-ticket.num_tokens // ticket.block_size_tokens):
            raise _wrong(
                "block_ids", f"{len(ticket.block_ids)} blocks cannot hold {ticket.num_tokens} tokens"
            )
        return ticket


def addresses_for(peer: KvPeer, rank: int, ranks: int) -> list[PeerAddress]:
    """Whom this rank of so many may fetch from: the peer's same rank, or any when it has another number."""
    same = len(peer.endpoints) == ranks
    endpoints = peer.endpoints[rank : rank + 1] if same else peer.endpoints
    return [PeerAddress(peer.worker_id, peer.epoch, endpoint) for endpoint in endpoints]


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """ "host:port" in two; IPv6 hosts may stand in brackets. Errors: TransferError."""
    host, colon, port = endpoint.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise TransferError(f"not an endpoint of the form host:port: {endpoint!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _wrong(name: str, why: str) -> TransferError:
    return TransferError(f"kv_transfer_params: {name}: {why}")


def _text(params: Mapping[str, Any], name: str) -> str:
    value = params.get(name)
    if not isinstance(value, str) or not 0 < len(value) <= 1024:
        raise _wrong(name, "must be text of 1 to 1024 characters")
    return value


def _integer(params: Mapping[str, Any], name: str, least: int) -> int:
    value = params.get(name)
    if not _is_int(value) or not least <= value < 1 << 63:
        raise _wrong(name, f"must be an integer from {least} on")
    return value


def _seconds(params: Mapping[str, Any]) -> float:
    value = params.get("lease_seconds")
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e9:
        raise _wrong("lease_seconds", "must be a positive number of seconds")
    return float(value)


def _endpoints(params: Mapping[str, Any]) -> tuple[str, ...]:
    value = params.get("endpoints")
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= _MAX_RANKS:
        raise _wrong("endpoints", f"must be a list of 1 to {_MAX_RANKS}")
    for endpoint in value:
        if not isinstance(endpoint, str):
            raise _wrong("endpoints", "must hold text only")
        try:
            split_endpoint(endpoint)
        except TransferError as error:
            raise _wrong("endpoints", error.message) from error
    return tuple(value)


def _block_ids(params: Mapping[str, Any]) -> tuple[int, ...]:
    value = params.get("block_ids")
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= _MAX_BLOCKS:
        raise _wrong("block_ids", f"must be a list of 1 to {_MAX_BLOCKS}")
    if not all(_is_int(block) and 0 <= block < 1 << 31 for block in value):
        raise _wrong("block_ids", "must hold integers from 0 to 2147483647 only")
    return tuple(value)


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
