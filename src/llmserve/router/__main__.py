"""python -m llmserve.router --manifest FILE --name NAME --listen HOST:PORT"""

import sys

from llmserve.config.load import load_manifest
from llmserve.router.role import RouterRole
from llmserve.router.settings import RouterSettings
from llmserve.rpc.role import add_kvmanagers, common_flags, configure_logging, run_role


def main() -> int:
    parser = common_flags("router")
    add_kvmanagers(parser, "none: requests are placed without regard to what is cached")
    flags = parser.parse_args()

    async def build() -> RouterRole:
        manifest = load_manifest(flags.manifest)
        configure_logging(manifest.observability.log_level)
        settings = RouterSettings.of(
            manifest.scheduling,
            manifest.budgets,
            prefetch_on_prefix=manifest.kv_cache.prefetch_on_prefix,
        )
        return RouterRole(
            settings,
            listen=flags.listen,
            kvmanagers=flags.kvmanager,
            metrics_port=flags.metrics_port,
            manifest=manifest,
        )

    return run_role(flags.name, build)


if __name__ == "__main__":
    sys.exit(main())
