"""The apiserver of a process: vLLM's API layer is imported here, and what compiles grammars is forked."""

from prometheus_client import REGISTRY

from llmserve.apiserver.grammars.server import fork_server
from llmserve.apiserver.options import ApiserverOptions
from llmserve.config.schema import Manifest
from llmserve.core.process import importing
from llmserve.engines.vllm.environment import set_apiserver_environment
from llmserve.rpc.role import Role, report_progress


def build_role(options: ApiserverOptions, manifest: Manifest, metrics_port: int) -> Role:
    """Takes seconds. Call it when the manifest is known to be right, before the process has threads."""
    set_apiserver_environment(manifest.security.limits)
    report_progress("loading vLLM's API layer")
    # Imported here, because it reads the environment.
    with importing():
        import llmserve.apiserver.grammars.compiler  # noqa: F401 - for the fork
        from llmserve.apiserver.role import ApiserverRole

    forked = fork_server(manifest.security.limits.grammar_seconds)
    # The default registry: vLLM's layer registers its own metrics there.
    return ApiserverRole(options, manifest, REGISTRY, metrics_port=metrics_port, forked=forked)
