"""The apiserver of a process: vLLM's API layer is imported here, and what compiles grammars is forked."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prometheus_client import REGISTRY

from llmserve.apiserver.grammars.server import fork_server
from llmserve.apiserver.options import ApiserverOptions
from llmserve.config.schema import Manifest
from llmserve.core.process import importing
from llmserve.engines.vllm.environment import set_apiserver_environment
from llmserve.engines.vllm.transformers_import import import_transformers
from llmserve.rpc.role import Role, report_progress

_COMPILER = "torch._inductor.lowering"  # what vLLM's changes of torch's compiler begin with


def build_role(options: ApiserverOptions, manifest: Manifest, metrics_port: int) -> Role:
    """Takes seconds. Call it when the manifest is known to be right, before the process has threads."""
    set_apiserver_environment(manifest.security.limits)
    report_progress("loading vLLM's API layer")
    # Imported here, because it reads the environment.
    with importing(), without_compiler():
        import_transformers()
        import llmserve.apiserver.grammars.compiler  # noqa: F401 - for the fork
        from llmserve.apiserver.role import ApiserverRole

    forked = fork_server(manifest.security.limits.grammar_seconds)
    # The default registry: vLLM's layer registers its own metrics there.
    return ApiserverRole(options, manifest, REGISTRY, metrics_port=metrics_port, forked=forked)


@contextmanager
def without_compiler() -> Iterator[None]:
    """Use it around the import of vLLM in a process that compiles nothing. Otherwise vLLM brings torch's
    compiler in, changes it, and prepares functions of engines for it: a third of the import's CPU time."""
    import torch

    compile_function = torch.compile
    sys.modules[_COMPILER] = None  # type: ignore[assignment] # Python's way to say that it cannot be imported
    setattr(torch, compile_function.__name__, _uncompiled)
    try:
        yield
    finally:
        setattr(torch, compile_function.__name__, compile_function)
        del sys.modules[_COMPILER]


def _uncompiled(function: Callable[..., Any] | None = None, **options: object) -> Any:
    """Takes the place of torch.compile, which is a decorator with and without options."""
    return _uncompiled if function is None else function
