"""python -m llmserve.kvstore --manifest FILE --name NAME --listen HOST:PORT: the role kvmanager."""

import os
import sys

from llmserve.config.load import load_manifest
from llmserve.core.clock import SystemClock
from llmserve.kvstore.role import KVManagerRole
from llmserve.kvstore.store.build import StoreParts, build_store
from llmserve.rpc.role import common_flags, configure_logging, run_role


def main() -> int:
    flags = common_flags("kvstore").parse_args()

    async def build() -> KVManagerRole:
        manifest = load_manifest(flags.manifest)
        configure_logging(manifest.observability.log_level)
        parts = StoreParts(
            classes=manifest.storageClasses,
            kv_cache=manifest.kv_cache,
            api_keys=manifest.security.api_keys,
            cluster=manifest.metadata.name,
            owner=f"{manifest.metadata.name}.{flags.name}",
            environment=os.environ,
        )
        store = build_store(parts, SystemClock()) if parts.classes else None
        return KVManagerRole(listen=flags.listen, metrics_port=flags.metrics_port, store=store)

    return run_role(flags.name, build)


if __name__ == "__main__":
    sys.exit(main())
