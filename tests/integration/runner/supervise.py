"""A supervisor of fake roles: `python supervise.py JOB.json` does what `llmserve up` does with a plan.

Unless the job asks for the real one, the preparation of the model is faked as well: it imports much.
"""

import asyncio
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console as RichConsole

from llmserve.config.load import load_manifest
from llmserve.config.plan import LocalPlan, ProcessRole, ProcessSpec
from llmserve.core.errors import LLMServeError
from llmserve.runner.cluster import ClusterJob, Ending, run_cluster
from llmserve.runner.console import Console
from llmserve.runner.environment import RunPaths, fetch_command
from llmserve.runner.process.child import ProcessCommand
from llmserve.runner.state import RunLock
from llmserve.runner.up import clear_leftovers

_PREPARED = """
import json, pathlib, sys
for name in ("config.json", "tokenizer.json"):
    pathlib.Path(sys.argv[1], name).write_text("{}")
print("LLMSERVE_MODEL", json.dumps({"name": sys.argv[2], "path": sys.argv[1]}))
"""


def fake_fetch(paths: RunPaths, *arguments: Any) -> ProcessCommand:
    """Its model is in the temporary directory of the run."""
    command = fetch_command(paths, *arguments)
    name = load_manifest(paths.manifest).model.served_name
    return replace(command, arguments=("-I", "-S", "-c", _PREPARED, str(paths.temp_dir), name))


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text())
    run_dir, manifest = Path(job["run_dir"]), Path(job["manifest"])
    processes = tuple(
        ProcessSpec(
            role=ProcessRole(role["role"]),
            name=role["name"],
            module="fake_role",
            listen=role["listen"],
            http=role["http"],
            args=(json.dumps(role["behaviour"]),),
            after=tuple(role["after"]),
        )
        for role in job["roles"]
    )
    plan = LocalPlan(processes, ("http://127.0.0.1:1",), ("this is a test",))
    console = Console(RichConsole(highlight=False, width=200), time.monotonic)
    fetch = fetch_command if job["prepare_model"] else fake_fetch
    try:
        with RunLock(run_dir), patch("llmserve.runner.cluster.fetch_command", fetch):
            clear_leftovers(run_dir)
            made = ClusterJob(load_manifest(manifest), manifest, plan, run_dir, job["verbose"])
            ending = asyncio.run(run_cluster(made, console))
    except LLMServeError as error:
        print(error.message, file=sys.stderr)
        return 1
    return 0 if ending is Ending.ORDERLY else 130


if __name__ == "__main__":
    sys.exit(main())
