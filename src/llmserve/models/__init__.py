"""Models and their sources: each source becomes a local directory that transformers and vLLM read.

Roles call `resolve`. `python -m llmserve.models pull --manifest FILE` does the same as a process, for `make
up` and the runner.
"""

from llmserve.models.files import Progress
from llmserve.models.resolve import PreparedModel, default_cache_dir, resolve

__all__ = ["PreparedModel", "Progress", "default_cache_dir", "resolve"]
