"""python -m llmserve.router --manifest FILE --name NAME --listen HOST:PORT"""

from functools import partial

from llmserve.config.load import load_manifest
from llmserve.core.process import exit_process
from llmserve.router.role import RouterRole
from llmserve.rpc.role import (
    add_kvmanagers,
    addresses,
    common_flags,
    open_manifest,
    run_role,
)


def main() -> int:
    parser = common_flags("router")
    parser.add_argument("--router", type=addresses, default=(), help="HOST:PORT,... of the other routers")
    add_kvmanagers(parser, "none: requests are placed without regard to what is cached")
    flags = parser.parse_args()

    async def build() -> RouterRole:
        manifest, _ = open_manifest(flags)
        return RouterRole.of(
            manifest,
            name=flags.name,
            listen=flags.listen,
            metrics_port=flags.metrics_port,
            others=flags.router,
            kvmanagers=flags.kvmanager,
            read_again=partial(load_manifest, flags.manifest),
            run_dir=flags.run_dir,
        )

    return run_role(flags.name, build)


if __name__ == "__main__":
    exit_process(main())
