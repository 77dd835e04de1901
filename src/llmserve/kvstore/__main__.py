"""python -m llmserve.kvstore --manifest FILE --name NAME --listen HOST:PORT: the role kvmanager."""

import os

from llmserve.core.clock import SystemClock
from llmserve.core.process import exit_process
from llmserve.kvstore.role import KVManagerRole
from llmserve.kvstore.store.build import StoreParts, build_store
from llmserve.rpc.callers import CallerRole
from llmserve.rpc.credentials import Credentials
from llmserve.rpc.role import common_flags, open_manifest, run_role


def main() -> int:
    flags = common_flags("kvstore").parse_args()

    async def build() -> KVManagerRole:
        manifest, _ = open_manifest(flags)
        store = build_store(StoreParts.of(manifest, flags.name, os.environ), SystemClock())
        return KVManagerRole(
            listen=flags.listen,
            name=flags.name,
            metrics_port=flags.metrics_port,
            store=store,
            engine_order=manifest.transfer.engine_order,
            credentials=Credentials.read(CallerRole.KVMANAGER, flags.name),
        )

    return run_role(flags.name, build)


if __name__ == "__main__":
    exit_process(main())
