"""python -m llmserve.apiserver --manifest FILE --name NAME --http HOST:PORT --router HOST:PORT"""

from prometheus_client import REGISTRY

from llmserve.apiserver.options import flags, options
from llmserve.config.load import parse_manifest, read_manifest
from llmserve.core.process import exit_process, importing
from llmserve.engines.vllm.environment import set_apiserver_environment
from llmserve.rpc.role import (
    Role,
    configure_audit,
    configure_logging,
    own_environment,
    report_progress,
    run_role,
)


def main() -> int:
    given = flags().parse_args()

    async def build() -> Role:
        text = read_manifest(given.manifest)
        manifest = parse_manifest(text, given.manifest)
        configure_logging(manifest.observability, given.name)
        configure_audit(manifest, given)
        own_environment(manifest)
        apiserver_options = options(given, manifest, text)
        set_apiserver_environment(manifest.security.limits)
        report_progress("loading vLLM's API layer")
        # Imported here, because it takes seconds and reads the environment: a wrong manifest fails at once.
        with importing():
            from llmserve.apiserver.role import ApiserverRole

        # The default registry: vLLM's layer registers its own metrics there.
        return ApiserverRole(apiserver_options, manifest, REGISTRY, metrics_port=given.metrics_port)

    return run_role(given.name, build)


if __name__ == "__main__":
    exit_process(main())
