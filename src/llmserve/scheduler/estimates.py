"""How much a request will generate, from what its tenant's requests generated before."""

from collections.abc import Mapping
from dataclasses import replace

from llmserve.core.ids import TenantId
from llmserve.scheduler.request import QueuedRequest

# Of a tenant nothing is known of: a chat answer.
_FIRST_GUESS_TOKENS = 256.0
# What the latest answer counts in the mean: it follows a change of habit within some 20 requests.
_LATEST = 1 / 16


class OutputEstimates:
    """One mean for each tenant; tenants are those of the manifest, so they are few."""

    def __init__(self) -> None:
        self._mean: dict[TenantId, float] = {}

    def stamped(self, request: QueuedRequest) -> QueuedRequest:
        """The request with its expected output: the tenant's mean for each choice, at least 1, at most what
        it may."""
        expected = max(1, round(self._mean.get(request.tenant, _FIRST_GUESS_TOKENS))) * request.choices
        if request.max_output_tokens > 0:
            expected = min(expected, request.max_output_tokens)
        return replace(request, expected_output_tokens=expected)

    def snapshot(self) -> dict[TenantId, float]:
        """The means, in tokens."""
        return dict(self._mean)

    def restore(self, means: Mapping[TenantId, float]) -> None:
        self._mean = dict(means)

    def learn(self, tenant: TenantId, output_tokens: int) -> None:
        """A request of the tenant has ended. output_tokens: of each choice. One without output was given up
        and says nothing."""
        if output_tokens > 0:
            mean = self._mean.get(tenant, float(output_tokens))
            self._mean[tenant] = mean + _LATEST * (output_tokens - mean)
