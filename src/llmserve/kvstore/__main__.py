"""python -m llmserve.kvstore --manifest FILE --name NAME --listen HOST:PORT: the role kvmanager."""

import sys

from llmserve.config.load import load_manifest
from llmserve.core.clock import SystemClock
from llmserve.kvstore.role import KVManagerRole
from llmserve.kvstore.store.build import build_store
from llmserve.rpc.role import common_flags, configure_logging, run_role


def main() -> int:
    flags = common_flags("kvstore").parse_args()

    async def build() -> KVManagerRole:
        manifest = load_manifest(flags.manifest)
        configure_logging(manifest.observability.log_level)
        classes, name = manifest.storageClasses, manifest.metadata.name
        store = build_store(classes, manifest.kv_cache, name, SystemClock()) if classes else None
        return KVManagerRole(listen=flags.listen, metrics_port=flags.metrics_port, store=store)

    return run_role(flags.name, build)


if __name__ == "__main__":
    sys.exit(main())
