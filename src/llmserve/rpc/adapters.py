"""Converts what processes tell each other about adapters between protobuf messages and core/adapters.py."""

from collections.abc import Iterable
from typing import TypeVar

from llmserve.core.adapters import (
    AdapterOrder,
    AdapterReport,
    AdapterReports,
    AdapterTier,
    LoraShape,
    NamedAdapter,
)
from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import AdapterDigest
from llmserve.rpc.gen.llmserve.v1 import common_pb2, router_pb2

_TIER_TO_WIRE: dict[AdapterTier, router_pb2.AdapterTier] = {
    tier: getattr(router_pb2, f"ADAPTER_TIER_{tier.name}") for tier in AdapterTier
}
_TIER_FROM_WIRE = {value: tier for tier, value in _TIER_TO_WIRE.items()}
_Default = TypeVar("_Default", bound=AdapterTier | None)


def encode_tier(tier: AdapterTier) -> router_pb2.AdapterTier:
    return _TIER_TO_WIRE[tier]


def decode_tier(tier: router_pb2.AdapterTier, default: _Default) -> AdapterTier | _Default:
    """default: what an unspecified tier means. Errors: InvalidRequest for an unknown one."""
    if tier == router_pb2.ADAPTER_TIER_UNSPECIFIED:
        return default
    if tier not in _TIER_FROM_WIRE:
        raise InvalidRequest(f"unknown tier of an adapter {tier}")
    return _TIER_FROM_WIRE[tier]


def encode_lora(shape: LoraShape) -> common_pb2.LoraShape | None:
    """None: the engine runs no adapters."""
    if not shape.slots:
        return None
    return common_pb2.LoraShape(
        slots=shape.slots, max_rank=shape.max_rank, target_modules=shape.target_modules
    )


def decode_lora(message: common_pb2.LoraShape) -> LoraShape:
    return LoraShape(message.slots, message.max_rank, tuple(message.target_modules))


def encode_orders(orders: Iterable[AdapterOrder]) -> router_pb2.AdapterOrders:
    return router_pb2.AdapterOrders(
        orders=[
            router_pb2.AdapterOrder(
                number=order.number,
                source=order.source,
                digest=order.digest,
                tier=encode_tier(order.tier),
                pinned=order.pinned,
                asked=order.asked,
            )
            for order in orders
        ]
    )


def decode_orders(message: router_pb2.AdapterOrders) -> tuple[AdapterOrder, ...]:
    """Errors: InvalidRequest for an unknown tier."""
    return tuple(
        AdapterOrder(
            number=order.number,
            source=order.source,
            digest=AdapterDigest(order.digest),
            tier=decode_tier(order.tier, AdapterTier.DISK),
            pinned=order.pinned,
            asked=order.asked,
        )
        for order in message.orders
    )


def encode_adapter_report(report: AdapterReport) -> router_pb2.AdapterReport:
    return router_pb2.AdapterReport(
        number=report.number,
        digest=report.digest,
        rank=report.rank,
        size_bytes=report.size_bytes,
        tier=encode_tier(report.tier),
        running=report.running,
        load_seconds=report.load_seconds,
        error=report.error,
        message=report.message,
    )


def decode_adapter_report(message: router_pb2.AdapterReport) -> AdapterReport:
    """Errors: InvalidRequest for an unknown tier."""
    return AdapterReport(
        number=message.number,
        digest=AdapterDigest(message.digest),
        rank=message.rank,
        size_bytes=message.size_bytes,
        tier=decode_tier(message.tier, AdapterTier.SOURCE),
        running=message.running,
        load_seconds=message.load_seconds,
        error=message.error,
        message=message.message,
    )


def encode_reports(reports: AdapterReports) -> router_pb2.AdapterReports:
    return router_pb2.AdapterReports(
        reports=map(encode_adapter_report, reports.reports),
        changes_only=reports.changes_only,
        ended=reports.ended,
    )


def decode_reports(message: router_pb2.AdapterReports) -> AdapterReports:
    """Errors: InvalidRequest for an unknown tier."""
    reports = tuple(map(decode_adapter_report, message.reports))
    return AdapterReports(reports, message.changes_only, tuple(message.ended))


def encode_named(adapter: NamedAdapter) -> router_pb2.NamedAdapter:
    return router_pb2.NamedAdapter(
        name=adapter.name,
        digest=adapter.digest,
        parent=adapter.parent,
        source=adapter.source,
        rank=adapter.rank,
        size_bytes=adapter.size_bytes,
        number=adapter.number,
    )


def decode_named(message: router_pb2.NamedAdapter) -> NamedAdapter:
    return NamedAdapter(
        name=message.name,
        digest=AdapterDigest(message.digest),
        parent=message.parent,
        source=message.source,
        rank=message.rank,
        size_bytes=message.size_bytes,
        number=message.number,
    )


def encode_names(adapters: Iterable[NamedAdapter]) -> router_pb2.NamedAdapters:
    return router_pb2.NamedAdapters(adapters=map(encode_named, adapters))


def decode_names(message: router_pb2.NamedAdapters) -> tuple[NamedAdapter, ...]:
    return tuple(map(decode_named, message.adapters))
