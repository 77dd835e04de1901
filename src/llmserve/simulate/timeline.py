"""What each tenant got, and who waited, second by second."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from llmserve.core.ids import TenantId

Tokens = Counter[TenantId]


@dataclass(slots=True)
class Timeline:
    """tokens[i]: computed in the i-th second, by tenant. waiting[i]: who had a request in the queue at its
    end."""

    tokens: list[Tokens] = field(default_factory=lambda: [Counter()])
    waiting: list[frozenset[TenantId]] = field(default_factory=list)

    def computed(self, tenant: TenantId, tokens: int) -> None:
        self.tokens[-1][tenant] += tokens

    def second_over(self, waiting: Iterable[TenantId]) -> None:
        self.waiting.append(frozenset(waiting))
        self.tokens.append(Counter())

    def contended(self, tenants: Iterable[TenantId]) -> list[int]:
        """The seconds at whose beginning and end requests of all these waited."""
        wanted, ends = frozenset(tenants), self.waiting
        return [i for i in range(1, len(ends)) if wanted <= ends[i - 1] and wanted <= ends[i]]

    def sums(self, seconds: Iterable[int]) -> Tokens:
        total: Tokens = Counter()
        for second in seconds:
            total.update(self.tokens[second])
        return total


def per_weight(tokens: Mapping[TenantId, int], weights: Mapping[TenantId, float]) -> dict[TenantId, float]:
    return {tenant: count / weights.get(tenant, 1.0) for tenant, count in tokens.items()}
