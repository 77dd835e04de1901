"""python -m llmserve.kvstore --manifest FILE --name NAME --listen HOST:PORT: the role kvmanager."""

import sys

from llmserve.config.load import load_manifest
from llmserve.kvstore.role import KVManagerRole
from llmserve.rpc.role import common_flags, configure_logging, run_role


def main() -> int:
    flags = common_flags("kvstore").parse_args()

    async def build() -> KVManagerRole:
        configure_logging(load_manifest(flags.manifest).observability.log_level)
        return KVManagerRole(listen=flags.listen, metrics_port=flags.metrics_port)

    return run_role(flags.name, build)


if __name__ == "__main__":
    sys.exit(main())
