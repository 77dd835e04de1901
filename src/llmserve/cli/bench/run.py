"""A load on one endpoint, and how its options become the load."""

import argparse
import json
import os
import random
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from pathlib import Path

import uvloop

from llmserve.cli.bench.options import KEY_VARIABLE, SECONDS
from llmserve.cli.bench.page import report_page, watched
from llmserve.cli.cluster import find_cluster
from llmserve.cli.command import EXIT_FAILED, EXIT_OK
from llmserve.cli.screen import screen
from llmserve.config.load import load_manifest
from llmserve.core.errors import InvalidRequest, StartFailed
from llmserve.core.ids import DEFAULT_TENANT, TenantId
from llmserve.loadgen.drive import Drive, LoadOutcome, Ways, run_load
from llmserve.loadgen.endpoint import EndpointTarget, base_url, listed_adapters, only_model, trusting
from llmserve.loadgen.load import Load
from llmserve.loadgen.page import page
from llmserve.loadgen.prompts import PromptForm
from llmserve.loadgen.report import Slo, make_report
from llmserve.loadgen.run_file import RunFile, new_path
from llmserve.loadgen.workload import AdapterMix, Mix, Tenant, parse_kind, parse_tenant, parse_weight
from llmserve.rpc.role import beside
from llmserve.runner.state import ClusterState
from llmserve.traces import TracedRequest, at_speed, read_trace


def run(options: argparse.Namespace) -> int:
    slo = Slo.parse(options.slo)
    weights = dict(parse_weight(text) for text in options.weights)
    load = load_of(options)
    url, path, tls = _where(options)
    with RunFile(path, load.describe()) as file:
        outcome = uvloop.run(_outcome(options, load, url, file, tls))
        report = make_report(outcome.records, outcome.about, slo, weights)
        file.ended(report)
    if options.html:
        Path(options.html).write_text(page(report, outcome.records), encoding="utf-8")
    if options.json:
        print(json.dumps(asdict(report), indent=2))
    else:
        screen().print(report_page(report))
    return EXIT_OK if report.served else EXIT_FAILED


def _where(options: argparse.Namespace) -> tuple[str, Path | None, ssl.SSLContext | bool]:
    """Returns the endpoint, the file that the run is kept in, and which servers are believed. Errors: as
    find_cluster; StartFailed."""
    given = Path(options.run_file) if options.run_file else None
    if options.url:
        return base_url(options.url), given, _trust(options.certificate)
    cluster = find_cluster(options)
    path = given or new_path(cluster.run_dir)
    return cluster.state.base_urls[0], path, trust_in(cluster.state)


def trust_in(cluster: ClusterState) -> ssl.SSLContext | bool:
    """Believes the cluster's own certificate, whoever has signed it. Errors: StartFailed."""
    manifest = Path(cluster.manifest)
    tls = load_manifest(manifest).security.tls
    return _trust(beside(manifest, tls.certificate) if tls else None)


def _trust(certificate: str | Path | None) -> ssl.SSLContext | bool:
    """Returns which servers are believed. None: those of the system's authorities. Errors: StartFailed."""
    if certificate is None:
        return True
    try:
        return trusting(Path(certificate))
    except (OSError, ValueError, IndexError) as error:
        raise StartFailed(f"{certificate}: no certificate can be read there: {error}") from error


async def _outcome(
    options: argparse.Namespace, load: Load, url: str, file: RunFile, tls: ssl.SSLContext | bool
) -> LoadOutcome:
    key = tenants_of(options)[0].key
    model = options.model or await only_model(url, key, tls)
    load = replace(load, adapters=await adapters_of(options, url, key, tls))

    @asynccontextmanager
    async def watch(drive: Drive) -> AsyncIterator[None]:
        async with watched(drive), file.watched(drive):
            yield

    return await run_load(load, target_of(options, url, model, tls), ways_of(options), watch)


async def adapters_of(
    options: argparse.Namespace, url: str, key: str | None, tls: ssl.SSLContext | bool = True
) -> AdapterMix | None:
    """Errors: InvalidRequest when the endpoint lists fewer than asked for; Unavailable, LLMServeError."""
    names: list[str] = options.adapters
    if not names:
        return None
    if len(names) == 1 and names[0].isdecimal():
        listed, wanted = await listed_adapters(url, key, tls), int(names[0])
        if not 0 < wanted <= len(listed):
            raise InvalidRequest(f"--adapters {wanted}: the endpoint lists {len(listed)} adapters")
        names = listed[:wanted]
    return AdapterMix(tuple(names), options.zipf)


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


def target_of(
    options: argparse.Namespace, url: str, model: str, tls: ssl.SSLContext | bool = True
) -> EndpointTarget:
    keys = {tenant.name: tenant.key for tenant in tenants_of(options)}
    extra = {"temperature": 0, "ignore_eos": True, **options.extra_body}
    default = api_key(options.api_key, os.environ)
    return EndpointTarget(
        url, model, keys, timeout_seconds=options.timeout, extra=extra, default_key=default, tls=tls
    )


def ways_of(options: argparse.Namespace) -> Ways:
    return Ways(_FORMS.get(options.prompts), options.token_ids, options.warmup)


def _trace(options: argparse.Namespace, tenants: tuple[Tenant, ...], seed: int) -> list[TracedRequest]:
    rng = random.Random(f"{seed} tenants")
    parts = [tenant.part for tenant in tenants]

    def next_tenant() -> TenantId:
        return TenantId(rng.choices(tenants, parts)[0].name)

    return at_speed(read_trace(Path(options.trace), next_tenant), options.speed)
