"""Names of things. Each is text on the wire; the types keep them from being mixed up."""

from typing import NewType

RequestId = NewType("RequestId", str)
WorkerId = NewType("WorkerId", str)
ApiserverId = NewType("ApiserverId", str)
TenantId = NewType("TenantId", str)
LeaseId = NewType("LeaseId", str)
TransferId = NewType("TransferId", str)
ReservationId = NewType("ReservationId", str)
BlockHash = NewType("BlockHash", bytes)
AdapterDigest = NewType("AdapterDigest", str)  # 64 hexadecimal digits; empty: the model without an adapter

DEFAULT_TENANT = TenantId("default")
NO_TENANT = TenantId("")

BACKGROUND_SUFFIX = " (batches)"


def background_of(tenant: TenantId) -> TenantId:
    """Returns the name by which the scheduler knows a tenant's batches: they have a flow of their own."""
    return TenantId(tenant + BACKGROUND_SUFFIX)


def owner_of(tenant: TenantId) -> TenantId:
    """Returns the tenant to which a flow belongs: of a background flow the one that it is named after."""
    return TenantId(tenant.removesuffix(BACKGROUND_SUFFIX))
