"""`llmserve apply`: checks a manifest and shows the plan. Changes nothing."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from llmserve.cli.command import EXIT_OK, Command, add_json, add_manifest
from llmserve.cli.screen import screen
from llmserve.config.load import load_manifest, locate
from llmserve.config.plan import LocalPlan
from llmserve.config.schema import Manifest
from llmserve.runner import preflight
from llmserve.runner.gpus import GpuTopology, KvPath, kv_paths, pinned_text, run_tool
from llmserve.runner.machine import HeldPorts
from llmserve.runner.up import check_here
from llmserve.transfer.pinned import PinnedMemory

_ABOUT = """\
Checks a manifest and prints what `llmserve up` would start on this machine. Changes nothing. A mistake is
reported with its file, line and path, and the exit code is 2; so is whatever a role would refuse here at its
start: a variable, package, model or GPU that is not there, KV memory that is too small. What may pass, such
as a port that is taken, is a warning. Of a cluster in Kubernetes, what this machine lacks is a warning, too.
Of engines on GPUs it also says which path KV takes between them, and how much host memory is pinned.
Ports that the manifest leaves open are examples: `up` picks free ones each time.
"""


def _run(options: argparse.Namespace) -> int:
    path = Path(options.file)
    manifest = load_manifest(path)
    if manifest.deployment.mode == "k8s":
        from llmserve.cli import k8s  # takes half a second of CPU

        return k8s.check(path, manifest, options.json)
    with HeldPorts() as ports:
        plan = check_here(manifest, path, ports)
    warnings = locate(path, preflight.now(manifest, plan)).message.splitlines()
    gpus = _GpuPlan.of(manifest, plan)
    if options.json:
        json.dump(_as_json(manifest, plan, gpus) | {"warnings": warnings}, sys.stdout, indent=2)
        print()
    else:
        _show(manifest, plan, path, [*plan.notes, *gpus.lines()], warnings)
    return EXIT_OK


@dataclass(frozen=True, slots=True)
class _GpuPlan:
    """paths: of KV between engines on GPUs. pinned: None without such engines."""

    paths: Sequence[KvPath]
    pinned: PinnedMemory | None

    @classmethod
    def of(cls, manifest: Manifest, plan: LocalPlan) -> "_GpuPlan":
        engines = [process for process in plan.processes if process.gpus]
        if not engines:
            return cls((), None)
        paths = kv_paths(manifest, engines, GpuTopology.seen_by(run_tool))
        return cls(paths, PinnedMemory.of_host(manifest, [one.model for one in engines]))

    def lines(self) -> Iterator[str]:
        for path in self.paths:
            yield f"KV goes from {path}."
        if self.pinned and self.pinned.host_bytes:
            yield f"Pinned host memory: {pinned_text(self.pinned)}."


def _configure(parser: argparse.ArgumentParser) -> None:
    add_manifest(parser)
    add_json(parser)


def _as_json(manifest: Manifest, plan: LocalPlan, gpus: _GpuPlan) -> dict[str, object]:
    return {
        "name": manifest.metadata.name,
        "model": manifest.served[0].served_name,
        "models": [one.served_name for one in manifest.served],
        "base_urls": plan.base_urls,
        "notes": plan.notes,
        "processes": [asdict(process) for process in plan.processes],
        "kv_paths": [asdict(path) for path in gpus.paths],
        "pinned": asdict(gpus.pinned) if gpus.pinned else None,
    }


def _show(
    manifest: Manifest, plan: LocalPlan, path: Path, notes: Sequence[str], warnings: Sequence[str]
) -> None:
    console = screen()
    several = len(manifest.served) > 1
    models = ", ".join(
        f"{one.served_name} from {one.source}" if several else one.source for one in manifest.served
    )
    console.print(f"{path}: correct. Cluster [bold]{manifest.metadata.name}[/], {models}", soft_wrap=True)
    table = Table("Role", "Process", "Listens on", "Cores", "What it does", box=None, pad_edge=False)
    for row in plan.describe_rows():
        table.add_row(*row)
    console.print(table)
    for note in notes:
        console.print(Text(f"Note: {note}"), soft_wrap=True)
    for warning in warnings:
        console.print(Text(f"Warning: {warning}"), soft_wrap=True)
    console.print(f"The API: {', '.join(f'{url}/v1' for url in plan.base_urls)}", soft_wrap=True)
    console.print(f"Nothing was started. To run it: llmserve up -f {path}", soft_wrap=True)


COMMAND = Command("apply", "check a manifest and show what would run", _ABOUT, _configure, _run)
