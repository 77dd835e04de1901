"""python -m llmserve.router --manifest FILE --name NAME --listen HOST:PORT"""

import sys

from llmserve.config.load import load_manifest
from llmserve.router.role import RouterRole
from llmserve.router.settings import RouterSettings
from llmserve.rpc.role import common_flags, configure_logging, run_role


def main() -> int:
    flags = common_flags("router").parse_args()

    async def build() -> RouterRole:
        manifest = load_manifest(flags.manifest)
        configure_logging(manifest.observability.log_level)
        settings = RouterSettings.of(manifest.scheduling, manifest.budgets)
        return RouterRole(settings, listen=flags.listen, metrics_port=flags.metrics_port, manifest=manifest)

    return run_role(flags.name, build)


if __name__ == "__main__":
    sys.exit(main())
