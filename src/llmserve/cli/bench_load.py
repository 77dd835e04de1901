"""From the options of `llmserve bench` to what is sent, and how."""

import argparse
import os
import random
from collections.abc import Mapping
from pathlib import Path

from llmserve.cli.bench_options import KEY_VARIABLE, SECONDS
from llmserve.core.errors import InvalidRequest
from llmserve.core.ids import DEFAULT_TENANT, TenantId
from llmserve.loadgen.endpoint import Target
from llmserve.loadgen.kinds import Tenant, parse_kind, parse_tenant
from llmserve.loadgen.load import Load
from llmserve.loadgen.prompts import PromptForm
from llmserve.loadgen.run import Ways
from llmserve.loadgen.workload import Mix
from llmserve.traces.read import at_speed, read_trace
from llmserve.traces.request import TracedRequest

_FORMS = {"tokens": PromptForm.TOKENS, "text": PromptForm.TEXT, "chat": PromptForm.CHAT}


def load_of(options: argparse.Namespace) -> Load:
    """Errors: InvalidRequest."""
    tenants = tenants_of(options)
    seed = random.SystemRandom().randrange(1 << 31) if options.seed is None else options.seed
    mix = Mix(
        kinds=tuple(parse_kind(text) for text in options.mix),
        tenants=tenants,
        turns=options.turns,
        spread=options.spread,
        shared_tokens=options.shared_prefix,
        prefixes=options.prefixes,
    )
    unlimited = options.requests is None and options.seconds is None and not options.trace
    return Load(
        mix=mix,
        seed=seed,
        trace=_trace(options, tenants, seed) if options.trace else (),
        rate=options.rate,
        burstiness=options.burstiness,
        concurrency=options.concurrency,
        count=options.requests,
        seconds=SECONDS if unlimited else options.seconds,
        think_seconds=options.think,
    )


def tenants_of(options: argparse.Namespace) -> tuple[Tenant, ...]:
    if options.tenants:
        return tuple(parse_tenant(text, os.environ) for text in options.tenants)
    return (Tenant(DEFAULT_TENANT, api_key(options.api_key, os.environ)),)


def api_key(given: str | None, environment: Mapping[str, str]) -> str | None:
    """Errors: InvalidRequest when a variable that was named is not set."""
    if given is None:
        return environment.get(KEY_VARIABLE) or None
    if not given.startswith("@"):
        return given
    if not environment.get(given[1:]):
        raise InvalidRequest(f"--api-key {given}: the environment has no {given[1:]}")
    return environment[given[1:]]


def target_of(options: argparse.Namespace, url: str, model: str) -> Target:
    keys = {tenant.name: tenant.key for tenant in tenants_of(options)}
    extra = {"temperature": 0, "ignore_eos": True, **options.extra_body}
    default = api_key(options.api_key, os.environ)
    return Target(url, model, keys, timeout_seconds=options.timeout, extra=extra, default_key=default)


def ways_of(options: argparse.Namespace) -> Ways:
    return Ways(_FORMS.get(options.prompts), options.token_ids, options.warmup)


def _trace(options: argparse.Namespace, tenants: tuple[Tenant, ...], seed: int) -> list[TracedRequest]:
    rng = random.Random(f"{seed} tenants")
    parts = [tenant.part for tenant in tenants]

    def next_tenant() -> TenantId:
        return TenantId(rng.choices(tenants, parts)[0].name)

    return at_speed(read_trace(Path(options.trace), next_tenant), options.speed)
