"""Router, KV manager and apiserver in one process (`deployment.local.single_process`).

python -m llmserve.control --manifest FILE --name NAME --http ADDRESS --router ADDRESS --kvmanager ADDRESS

The same roles as in processes of their own, talking to each other over gRPC on the same addresses;
this module only starts them in one loop, in order, and stops them the other way round.
"""

import asyncio
import contextlib
import os
from collections.abc import Sequence

from llmserve.apiserver.build import build_role
from llmserve.apiserver.options import flags as apiserver_flags
from llmserve.apiserver.options import options as apiserver_options
from llmserve.core.clock import SystemClock
from llmserve.core.process import exit_process
from llmserve.kvstore.role import KVManagerRole
from llmserve.kvstore.store.build import StoreParts, build_store
from llmserve.router.role import RouterRole
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import Credentials
from llmserve.rpc.role import (
    Role,
    open_manifest,
    own_environment,
    run_role,
)


class Roles:
    """Several roles as one: started in order, stopped in reverse; when one cannot go on, none does."""

    def __init__(self, roles: Sequence[Role]) -> None:
        self._roles = roles
        self._closing = contextlib.AsyncExitStack()

    async def start(self) -> None:
        """Errors: StartFailed."""
        for role in self._roles:
            self._closing.push_async_callback(role.aclose)
            await role.start()

    async def wait(self) -> None:
        async with asyncio.TaskGroup() as group:
            for role in self._roles:
                group.create_task(_ends_badly(role))

    async def aclose(self) -> None:
        await self._closing.aclose()


async def _ends_badly(role: Role) -> None:
    await role.wait()
    raise RuntimeError(f"{type(role).__name__} ended without being asked to")


def main() -> int:
    parser = apiserver_flags()
    parser.prog = "python -m llmserve.control"
    parser.description = "Router, KV manager and apiserver in one process"
    parser.add_argument("--kvmanager", required=True, help="host:port to listen on as the KV manager")
    given = parser.parse_args()

    async def build() -> Roles:
        manifest, text = open_manifest(given)
        own_environment(manifest)
        options = apiserver_options(given, manifest, text)
        apiserver = build_role(options, manifest, given.metrics_port)
        store = build_store(StoreParts.of(manifest, "kvmanager-0", os.environ), SystemClock())
        return Roles(
            (
                RouterRole.of(
                    manifest, listen=given.router[0], kvmanagers=(given.kvmanager,), run_dir=given.run_dir
                ),
                KVManagerRole(
                    listen=given.kvmanager,
                    store=store,
                    engine_order=manifest.transfer.engine_order,
                    credentials=Credentials.read(CallerRole.KVMANAGER, "kvmanager-0"),
                ),
                apiserver,
            )
        )

    return run_role(given.name, build)


if __name__ == "__main__":
    exit_process(main())
