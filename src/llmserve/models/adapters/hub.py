"""Adapters of the hub. All files of one come from the same commit. When the hub does not answer, what its
client's cache holds is used."""

import functools
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmserve.core.errors import LLMServeError, ModelNotFound, Unavailable
from llmserve.models.adapters.peft import CONFIG_NAME
from llmserve.models.hub import cached_snapshot, hub_refusal, is_offline

_DOWNLOADS = ".hub"


@dataclass(frozen=True, slots=True)
class _Commit:
    """sizes: of its files. folder: of the hub's cache; None: the files are still on the hub."""

    commit: str
    sizes: Mapping[str, int]
    folder: Path | None = None


class HubPlace:
    """repo: ORG/NAME. revision: empty for the default branch."""

    def __init__(self, repo: str, revision: str) -> None:
        self._repo = repo
        self._revision = revision or None
        self._name = f"adapter 'hub:{repo}{'@' if revision else ''}{revision}'"

    def size_bytes(self, name: str) -> int | None:
        return self._found.sizes.get(name)

    def save(self, name: str, target: Path) -> None:
        if self._found.folder is not None:
            shutil.copyfile(self._found.folder / name, target)
            return
        from huggingface_hub import HfApi

        downloads = target.with_name(_DOWNLOADS)
        try:
            HfApi().hf_hub_download(self._repo, name, revision=self._found.commit, local_dir=downloads)
        except Exception as error:  # the hub's client raises errors of three libraries
            if isinstance(error, OSError) and error.errno is not None:
                raise  # of the disk
            raise self._refusal(error) from error
        (downloads / name).replace(target)
        shutil.rmtree(downloads)

    @functools.cached_property
    def _found(self) -> _Commit:
        try:
            from huggingface_hub import HfApi

            info = HfApi().model_info(self._repo, revision=self._revision, files_metadata=True)
        except Exception as error:  # the hub's client raises errors of three libraries
            return self._in_cache(self._refusal(error))
        sizes = {one.rfilename: one.size for one in info.siblings or () if one.size is not None}
        return _Commit(info.sha or "", sizes)

    def _in_cache(self, refusal: LLMServeError) -> _Commit:
        """Errors: the refusal, when it is the hub's own, or nothing is cached."""
        is_away = isinstance(refusal, Unavailable) or is_offline()
        folder = cached_snapshot(self._repo, self._revision, CONFIG_NAME) if is_away else None
        if folder is None:
            raise refusal
        return _Commit(
            folder.name, {one.name: one.stat().st_size for one in folder.iterdir() if one.is_file()}, folder
        )

    def _refusal(self, error: Exception) -> LLMServeError:
        if why := hub_refusal(error, self._revision):
            return ModelNotFound(f"{self._name}: {why}")
        if is_offline():
            return ModelNotFound(f"{self._name}: is not in the hub's cache, and HF_HUB_OFFLINE is set")
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        return Unavailable(f"{self._name}: the hub is away: {first}")
