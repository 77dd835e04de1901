"""How a worker reaches the pool: by mapping its memory, or by the transfer engine."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmserve.core.errors import LLMServeError, TransferError
from llmserve.kvstore.blocks import Slot
from llmserve.kvstore.dram.client.attached import AttachedArena
from llmserve.kvstore.dram.client.copier import Copied, CopyOutcome, PoolAccess, PoolCopier
from llmserve.kvstore.dram.client.device_copier import DevicePoolCopier
from llmserve.kvstore.dram.client.pinning import ArenaPinning
from llmserve.kvstore.dram.client.quantized import Codes, HostCoder, QuantizedPool, RowCoder
from llmserve.kvstore.dram.client.remote import RemotePool
from llmserve.kvstore.dram.shape import ArenaDescription
from llmserve.rpc.credentials import NO_CREDENTIALS, Credentials
from llmserve.transfer.base import Region, Spans
from llmserve.transfer.devices import Staging
from llmserve.transfer.engine.choice import TransferPolicy
from llmserve.transfer.engine.engine import SharedTransfers
from llmserve.transfer.select import make_transports


class MappedPool:
    """The pool of this host. Owns the arena and the copier."""

    def __init__(self, arena: AttachedArena, copier: PoolCopier | DevicePoolCopier) -> None:
        self._arena, self._copier = arena, copier

    def store(self, slots: Sequence[Slot], spans: Spans) -> list[Copied]:
        stored = self._copier.store(slots, spans)
        for slot, copied in zip(slots, stored, strict=True):
            if copied.outcome is CopyOutcome.DONE:
                self._arena.note_checksum(slot, copied.checksum)
        return stored

    def load(self, slots: Sequence[Slot], spans: Spans) -> list[Copied]:
        return self._copier.load(slots, spans)

    def close(self) -> None:
        self._copier.close()
        self._arena.close()


@dataclass(frozen=True, slots=True)
class RemoteAccess:
    """How this worker reaches pools, also those on other hosts. engine_order: transports to prefer. host:
    address of this machine that others reach. policy: that of all transfers of this process. shared: see
    TransferEngine; its staging reaches the worker's memory where that is a device's. codes: how the pool
    keeps blocks; None: as they are."""

    engine_order: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    policy: TransferPolicy = field(default_factory=TransferPolicy)
    shared: SharedTransfers = field(default_factory=SharedTransfers)
    codes: Codes | None = None
    credentials: Credentials = NO_CREDENTIALS


def open_pool(manager: str, description: str, regions: Sequence[Region], remote: RemoteAccess) -> PoolAccess:
    """manager: name of the pool's KV manager, in logs and in the matrix. regions: the worker's memory, which
    outlives the access. Takes seconds for a pool on another host. Errors: TransferError."""
    if remote.codes is None:
        return _opened(manager, description, regions, remote)
    coder = row_coder(remote.codes, remote.shared.staging)
    return QuantizedPool(_opened(manager, description, [coder.rows], remote), regions, coder, remote.codes)


def row_coder(codes: Codes, staging: Staging | None) -> RowCoder:
    """Codes where the blocks are. staging: as of SharedTransfers."""
    if staging is None:
        return HostCoder(codes)
    import torch

    from llmserve.kvstore.dram.client.device_coder import DeviceCoder

    return DeviceCoder(codes, staging.copies, torch.device("cuda", staging.copies.memory.device))


def _opened(manager: str, description: str, regions: Sequence[Region], remote: RemoteAccess) -> PoolAccess:
    described = ArenaDescription.from_text(description)
    if not described.transports:
        return _mapped(manager, description, regions, remote.shared)
    try:
        transports, _ = make_transports(
            remote.engine_order,
            remote.host,
            staging=remote.shared.staging,
            credentials=remote.credentials,
        )
    except LLMServeError as error:
        raise TransferError(f"kv pool: on another host: {error.message}") from error
    return RemotePool(manager, described, regions, transports, remote.policy, shared=remote.shared)


def _mapped(manager: str, description: str, regions: Sequence[Region], shared: SharedTransfers) -> MappedPool:
    """Errors: TransferError, see AttachedArena."""
    arena, staging = AttachedArena(description), shared.staging
    if staging is None:
        return MappedPool(arena, PoolCopier(arena, regions))
    pinning = ArenaPinning(manager, arena.data, staging.copies, shared.matrix)
    return MappedPool(arena, DevicePoolCopier(arena, regions, staging, pinning))
