"""python -m llmserve.apiserver --manifest FILE --name NAME --http HOST:PORT --router HOST:PORT"""

from llmserve.apiserver.build import build_role
from llmserve.apiserver.options import flags, options
from llmserve.core.process import exit_process
from llmserve.rpc.role import (
    Role,
    open_manifest,
    own_environment,
    run_role,
)


def main() -> int:
    given = flags().parse_args()

    async def build() -> Role:
        manifest, text = open_manifest(given)
        own_environment(manifest)
        return build_role(options(given, manifest, text), manifest, given.metrics_port)

    return run_role(given.name, build)


if __name__ == "__main__":
    exit_process(main())
