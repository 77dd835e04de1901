"""The environment that vLLM reads when it is imported: set before that, or not at all."""

import os

from llmserve.engines.vllm.environment import keep_caches

# This process computes nothing, so one thread of everything is enough; stdout is for the runner.
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def prepare_environment() -> None:
    """What `engine.env` says, or who started this process, stays as it is."""
    keep_caches()
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
