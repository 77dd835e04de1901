"""kv_transfer_params of a request: how KV gets from the prefill engine to the decode engine.

They travel as JSON with the request, and are parsed once, where a process receives them. Bounded types of
fields that come from other processes stand here, too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from llmserve.core.adapters import BASE_MODEL
from llmserve.core.errors import AdapterUnavailable, TransferError
from llmserve.core.ids import AdapterDigest, LeaseId, TransferId, WorkerId
from llmserve.core.request import KvPeer

MOST_RANKS, MOST_BLOCKS, MOST_GROUPS = 1024, 1 << 20, 64

WorkerName = Annotated[WorkerId, Meta(min_length=1, max_length=1024)]
LeaseName = Annotated[LeaseId, Meta(min_length=1, max_length=1024)]
TransferName = Annotated[TransferId, Meta(min_length=1, max_length=1024)]
Text = Annotated[str, Meta(max_length=1024)]
Whole = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Positive = Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
Word = Annotated[int, Meta(ge=0, lt=1 << 31)]  # block ids, token ids
BlockIds = Annotated[tuple[Word, ...], Meta(min_length=1, max_length=MOST_BLOCKS)]
Endpoint = Annotated[str, Meta(max_length=1024)]  # host:port
Endpoints = Annotated[tuple[Endpoint, ...], Meta(min_length=1, max_length=MOST_RANKS)]
Seconds = Annotated[float, Meta(ge=0, lt=1e9)]

T = TypeVar("T")


class HandoverMode(StrEnum):
    PULL = "pull"  # decode reads the KV when prefill is done
    PUSH = "push"  # prefill writes it while it computes


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """The side channel of one rank of one incarnation of a worker. Errors: TransferError for an endpoint that
    is not host:port."""

    worker_id: WorkerName
    epoch: Whole
    endpoint: Endpoint

    def __post_init__(self) -> None:
        split_endpoint(self.endpoint)


@dataclass(frozen=True, slots=True)
class BlockRun:
    """Consecutive blocks of a prompt; block_ids[0] is block first_block of the prompt."""

    first_block: int
    block_ids: Sequence[int]

    def part(self, first: int, end: int) -> Sequence[int]:
        """The ids of the blocks from `first` on and before `end`. Errors: TransferError for blocks that are
        not here."""
        if first < self.first_block or end > self.first_block + len(self.block_ids):
            there = f"{self.first_block} to {self.first_block + len(self.block_ids)}"
            raise TransferError(f"blocks {first} to {end} of the prompt are needed, {there} are there")
        return self.block_ids[first - self.first_block : end - self.first_block]


@dataclass(frozen=True, slots=True)
class BlockTable:
    """The blocks that hold a part of a prompt, in each group of layers those from first_blocks[group] on. All
    groups end with the same block, `end` - 1. A group whose layers see only a window of tokens lacks the
    blocks before the window. block_ids: of one group after the other. Errors: TransferError for numbers that
    contradict each other."""

    block_ids: BlockIds
    first_blocks: Annotated[tuple[Whole, ...], Meta(min_length=1, max_length=MOST_GROUPS)] = (0,)

    def __post_init__(self) -> None:
        rest = (len(self.block_ids) + sum(self.first_blocks)) % len(self.first_blocks)
        if rest or max(self.first_blocks) >= self.end:
            raise TransferError(f"block_ids: {len(self.block_ids)} blocks from {self.first_blocks} on")

    @classmethod
    def of(cls, runs: Sequence[BlockRun]) -> "BlockTable":
        """runs: of each group. They end with the same block."""
        block_ids = tuple(block_id for run in runs for block_id in run.block_ids)
        return cls(block_ids, tuple(run.first_block for run in runs))

    @property
    def end(self) -> int:
        return (len(self.block_ids) + sum(self.first_blocks)) // len(self.first_blocks)

    @property
    def runs(self) -> Iterator[BlockRun]:
        """One for each group."""
        at = 0
        for first in self.first_blocks:
            count = self.end - first
            yield BlockRun(first, self.block_ids[at : at + count])
            at += count


@dataclass(frozen=True, slots=True)
class PullParams:
    """What a decode engine needs to fetch the KV of a finished prefill. endpoints: host:port of the side
    channel of each tensor-parallel rank, in rank order. blocks: the owner's; the last one of a group may be
    partly filled. adapter: digest of the version that computed them; empty: the base model. Errors:
    TransferError naming the field."""

    worker_id: WorkerName
    epoch: Whole
    lease_id: LeaseName
    endpoints: Endpoints
    blocks: BlockTable
    num_tokens: Positive
    block_size_tokens: Positive
    lease_seconds: Annotated[float, Meta(gt=0, lt=1e9)]
    adapter: Text = BASE_MODEL

    def __post_init__(self) -> None:
        _check_endpoints(self.endpoints)
        if self.blocks.end != -(-self.num_tokens // self.block_size_tokens):
            raise TransferError(f"blocks: {self.blocks.end} blocks cannot hold {self.num_tokens} tokens")

    def address(self, rank: int) -> PeerAddress:
        """Errors: TransferError for a rank that the owner does not have."""
        return _address(self.worker_id, self.epoch, self.endpoints, rank)

    def to_params(self) -> dict[str, Any]:
        return {"do_remote_prefill": True, **msgspec.to_builtins(self)}

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> "PullParams":
        """Errors: TransferError naming the field, for anything `to_params` cannot have made."""
        _check_remote_prefill(params)
        return _parsed(params, cls)


@dataclass(frozen=True, slots=True)
class PushParams:
    """What a decode engine needs to wait for the KV of a prompt that prefill pushes. endpoints: side channels
    of the prefill worker, in rank order. num_tokens: length of the prompt. continues: decode goes on from the
    token that prefill draws; if not, it draws that token again. Errors: TransferError naming the field."""

    transfer_id: TransferName
    worker_id: WorkerName
    epoch: Whole
    endpoints: Endpoints
    num_tokens: Positive
    continues: bool

    def __post_init__(self) -> None:
        _check_endpoints(self.endpoints)

    def address(self, rank: int) -> PeerAddress:
        """Errors: TransferError for a rank that the worker does not have."""
        return _address(self.worker_id, self.epoch, self.endpoints, rank)

    def to_params(self) -> dict[str, Any]:
        return {"do_remote_prefill": True, "push": msgspec.to_builtins(self)}

    @classmethod
    def from_params(cls, params: Mapping[str, Any]) -> "PushParams":
        """Errors: TransferError naming the field, for anything `to_params` cannot have made."""
        _check_remote_prefill(params)
        return _parsed(params.get("push"), cls, "push")


@dataclass(frozen=True, slots=True)
class _PrefillPush:
    transfer_id: TransferName


def is_pushed(params: Mapping[str, Any]) -> bool:
    """Whether kv_transfer_params, of either leg, ask for a push."""
    return "push" in params


def prefill_params(transfer_id: TransferId) -> dict[str, Any]:
    """kv_transfer_params of the prefill leg of a push."""
    return {"do_remote_decode": True, "push": {"transfer_id": transfer_id}}


def transfer_of(params: Mapping[str, Any]) -> TransferId:
    """The transfer that the prefill leg of a push names. Errors: TransferError."""
    return _parsed(params.get("push"), _PrefillPush, "push").transfer_id


def for_adapter(params: Mapping[str, Any] | None, adapter: AdapterDigest) -> Mapping[str, Any] | None:
    """Returns parameters of either leg, which were checked, with the adapter in the name of a push: its legs
    meet only if they have the same one."""
    if not params or not adapter or not is_pushed(params):
        return params
    return {**params, "push": {**params["push"], "transfer_id": f"{params['push']['transfer_id']}.{adapter}"}}


def check_params(
    params: Mapping[str, Any] | None, prompt_tokens: int, adapter: AdapterDigest = BASE_MODEL
) -> None:
    """Before an engine takes the request. Errors: TransferError naming the field; AdapterUnavailable when
    the KV to fetch is not that of the request's adapter."""
    if not params:
        return
    if params.get("do_remote_prefill"):
        if not is_pushed(params):
            computed_by = PullParams.from_params(params).adapter
            if computed_by != adapter:
                raise AdapterUnavailable(
                    f"the request's adapter is {adapter or 'none'}, and its KV was computed with "
                    f"{computed_by or 'none'}"
                )
        elif PushParams.from_params(params).num_tokens != prompt_tokens:
            raise TransferError(f"kv_transfer_params: num_tokens: the prompt has {prompt_tokens}")
    elif params.get("do_remote_decode") and is_pushed(params):
        transfer_of(params)


def arriving_tokens(params: Mapping[str, Any] | None) -> int:
    """Tokens of a prompt that another worker hands over; 0: all is computed here. Errors: TransferError."""
    if not params or not params.get("do_remote_prefill"):
        return 0
    return (PushParams if is_pushed(params) else PullParams).from_params(params).num_tokens


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


def _check_endpoints(endpoints: tuple[str, ...]) -> None:
    for endpoint in endpoints:
        try:
            split_endpoint(endpoint)
        except TransferError as error:
            raise TransferError(f"endpoints: {error.message}") from error


def _address(worker_id: WorkerId, epoch: int, endpoints: tuple[str, ...], rank: int) -> PeerAddress:
    if not 0 <= rank < len(endpoints):
        raise TransferError(f"the request has no endpoint for rank {rank}")
    return PeerAddress(worker_id, epoch, endpoints[rank])


def _check_remote_prefill(params: Mapping[str, Any]) -> None:
    if params.get("do_remote_prefill") is not True:
        raise TransferError("kv_transfer_params: do_remote_prefill: must be true")


def _parsed(fields: Any, kind: type[T], name: Literal["", "push"] = "") -> T:
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise TransferError(f"kv_transfer_params: {name and name + ': '}{error}") from error
    except TransferError as error:
        raise TransferError(f"kv_transfer_params: {error.message}") from error
