"""Which transports an engine goes on with, and what its thread is set up for."""

from collections.abc import Sequence

import pytest

from llmserve.core.errors import TransferError
from llmserve.transfer.base import Region, Transport
from llmserve.transfer.devices import Staging
from llmserve.transfer.devices.fake import FakeDevice
from llmserve.transfer.engine.engine import SharedTransfers, TransferEngine
from llmserve.transfer.shm import ShmTransport
from llmserve.transfer.tcp import TcpTransport


def refusing(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> Transport:
    """The transport, which cannot register any memory."""

    def register(_: Sequence[Region]) -> None:
        raise TransferError(f"{transport.name}: no memory left to pin")

    monkeypatch.setattr(transport, "register", register)
    return transport


def test_a_transport_that_cannot_register_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    left_out = TcpTransport()
    engine = TransferEngine([refusing(left_out, monkeypatch), ShmTransport()], [])
    assert list(engine.transports) == list(engine.descriptions) == ["shm"]
    assert engine.unusable == {"tcp": "tcp: no memory left to pin"}
    with pytest.raises(TransferError, match="closed"):
        TcpTransport.register(left_out, [])
    engine.close()


def test_an_engine_whose_transports_all_fail_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    transports = [refusing(one, monkeypatch) for one in (ShmTransport(), TcpTransport())]
    with pytest.raises(TransferError, match=r"shm: no memory left to pin; .*tcp: no memory left to pin"):
        TransferEngine(transports, [])


def test_a_transport_that_cannot_register_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    transport = TcpTransport()
    engine = TransferEngine([transport, ShmTransport()], [])
    refusing(transport, monkeypatch)

    async def fence() -> None:
        engine.fence(["tcp"])

    engine.call(fence())
    assert (list(engine.transports), list(engine.unusable)) == (["shm"], ["tcp"])
    engine.close()


def test_the_thread_of_an_engine_has_its_device() -> None:
    device = FakeDevice(lateness_seconds=0.0)
    staging = Staging(device)
    engine = TransferEngine([TcpTransport(staging=staging)], [], shared=SharedTransfers(staging=staging))
    engine.close()
    device.close()
    assert "kv-transfer" in device.threads
