"""Section `budgets`: how much may run at once."""

from typing import Annotated

from pydantic import Field

from llmserve.config.knob import Live, Section, Unit


class TenantBudget(Section):
    """What one tenant may use. A tenant that has used it up waits, and nobody else does."""

    max_requests_in_flight: Annotated[
        int | None,
        Unit("requests"),
        Field(
            gt=0,
            description="Its requests that run at the same time; each choice (`n`) is one. Without it, "
            "no limit.",
        ),
    ] = None
    max_requests_per_second: Annotated[
        float | None,
        Unit("requests/second"),
        Field(gt=0, description="Its requests that start in a second, on average. Without it, no limit."),
    ] = None
    max_tokens_per_second: Annotated[
        float | None,
        Unit("tokens/second"),
        Field(
            gt=0,
            description="Prompt tokens to compute and tokens generated for it in a second, on average. "
            "Without it, no limit.",
        ),
    ] = None


class NamedTenantBudget(TenantBudget):
    """What one named tenant may use."""

    tenant: Annotated[str, Field(min_length=1, description="The tenant, as in `security.api_keys`.")]


class Budgets(Section):
    """What all running requests together may use."""

    max_tokens_in_flight: Annotated[
        int | None,
        Unit("tokens"),
        Live(("router",)),
        Field(
            gt=0,
            description="Prompt tokens to compute and expected answer tokens of all running requests. "
            "Without it, no limit.",
        ),
    ] = None
    hbm_gb: Annotated[
        float | None,
        Unit("GiB"),
        Live(("router",)),
        Field(
            gt=0,
            description="KV of all running requests: prompt and expected answer. Without it, what the "
            "engines have, who preempt requests when it is used up.",
        ),
    ] = None
    max_kv_io_gbps: Annotated[
        float | None,
        Unit("Gbit/s"),
        Live(("router",), at_start=("worker",)),
        Field(
            gt=0,
            description="KV bytes that engines fetch from each other, of the whole cluster; each decode "
            "engine gets an equal part, and requests start no faster than their KV can move.",
        ),
    ] = None
    max_requests_in_flight: Annotated[
        int | None,
        Unit("requests"),
        Live(("router",)),
        Field(
            gt=0,
            description="Requests that run at the same time; each choice (`n`) is one. Without it, what all "
            "decode engines hold.",
        ),
    ] = None
    per_tenant: Annotated[
        TenantBudget,
        Live(("router",)),
        Field(description="What each tenant may use that `tenants` does not name."),
    ] = TenantBudget()
    tenants: Annotated[
        tuple[NamedTenantBudget, ...],
        Live(("router",)),
        Field(strict=False, description="Tenants with budgets of their own, in place of `per_tenant`."),
    ] = ()
