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
