"""Why the directory of a model cannot be served."""

from pathlib import Path

import pytest

from llmserve.config.schema import EngineConfig, KvCacheConfig
from llmserve.core.errors import ModelNotFound
from llmserve.models.refusals import directory_refusals


def test_a_directory_that_is_not_there_is_not_one_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no-such-directory"):
        next(directory_refusals(EngineConfig(), KvCacheConfig(), tmp_path / "no-such-directory"))
