"""Tenants and budgets, for GetClusterStatus. Pure."""

from llmserve.core.stats import SchedulerStats
from llmserve.rpc.gen.llmserve.v1 import router_pb2


def encode_tenants(stats: SchedulerStats) -> list[router_pb2.TenantStatus]:
    return [
        router_pb2.TenantStatus(
            tenant=one.tenant,
            weight=one.weight,
            queued_requests=one.waiting,
            running_requests=one.running,
            dispatched_requests=one.dispatched,
            refused_requests=one.refused,
            queue_seconds=one.queue_seconds,
            served_tokens=one.served_tokens,
        )
        for one in stats.tenants
    ]


def encode_budgets(stats: SchedulerStats) -> list[router_pb2.BudgetStatus]:
    return [
        router_pb2.BudgetStatus(name=one.name, used_ratio=one.used_ratio, refused_requests=one.refused)
        for one in stats.budgets
    ]
