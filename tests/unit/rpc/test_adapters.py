"""What processes tell each other about adapters crosses unchanged."""

import pytest

from llmserve.core.adapters import (
    NO_ADAPTERS,
    AdapterOrder,
    AdapterReport,
    AdapterReports,
    AdapterTier,
    LoraShape,
    NamedAdapter,
)
from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import AdapterDigest
from llmserve.rpc.adapters import (
    decode_lora,
    decode_names,
    decode_orders,
    decode_reports,
    decode_tier,
    encode_lora,
    encode_names,
    encode_orders,
    encode_reports,
    encode_tier,
)
from llmserve.rpc.gen.llmserve.v1 import common_pb2, router_pb2

DIGEST = AdapterDigest("ab" * 32)
UNSPECIFIED = router_pb2.ADAPTER_TIER_UNSPECIFIED


def test_orders() -> None:
    orders = (
        AdapterOrder(2**40, "dir:/a", DIGEST, AdapterTier.DRAM, pinned=True, asked=3),
        AdapterOrder(3, "hub:ORG/NAME@main"),
    )
    assert decode_orders(encode_orders(orders)) == orders


@pytest.mark.parametrize("changes_only", [False, True])
def test_reports(changes_only: bool) -> None:
    reports = (
        AdapterReport(2**40, DIGEST, 8, 2**33, AdapterTier.DEVICE, running=3, load_seconds=0.25),
        AdapterReport(3, error="ModelNotFound", message="dir:/a: there is no such directory"),
    )
    told = AdapterReports(reports, changes_only, (2**40 + 1,))
    assert decode_reports(encode_reports(told)) == told


def test_names() -> None:
    names = (NamedAdapter("sql", DIGEST, "m", "dir:/a", 16, 2**33, 2**40), NamedAdapter("chat", DIGEST, "m"))
    assert decode_names(encode_names(names)) == names


@pytest.mark.parametrize("tier", AdapterTier)
def test_each_tier(tier: AdapterTier) -> None:
    other = next(one for one in AdapterTier if one is not tier)
    assert decode_tier(encode_tier(tier), other) is tier


def test_an_unspecified_tier_means_what_the_message_says_of_it() -> None:
    order, report = router_pb2.AdapterOrder(number=1), router_pb2.AdapterReport(number=1)
    assert decode_tier(UNSPECIFIED, AdapterTier.DRAM) is AdapterTier.DRAM
    assert decode_orders(router_pb2.AdapterOrders(orders=[order])) == (AdapterOrder(1, ""),)
    assert decode_reports(router_pb2.AdapterReports(reports=[report])) == AdapterReports((AdapterReport(1),))


def test_an_unknown_tier_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="unknown tier of an adapter 9"):
        decode_tier(9, AdapterTier.DISK)  # type: ignore[arg-type]  # of a later release


def test_the_shape_of_an_engine() -> None:
    shape = LoraShape(4, 16, ("q_proj", "v_proj"))
    message = encode_lora(shape)
    assert message is not None
    assert decode_lora(message) == shape


def test_an_engine_without_adapters_says_nothing() -> None:
    assert encode_lora(NO_ADAPTERS) is None
    assert decode_lora(common_pb2.WorkerInfo().lora) == NO_ADAPTERS
