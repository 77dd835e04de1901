"""What a supervisor that was killed left behind, should its guard be gone too."""

import shutil
from pathlib import Path

from llmserve.core.errors import LLMServeError
from llmserve.runner.guard import TERM_SECONDS
from llmserve.runner.processes import (
    SHARED_MEMORY_DIR,
    Family,
    end,
    members,
    remove_unused_shared_memory,
    shared_memory,
)
from llmserve.runner.state import STATE_NAME, ClusterState, read_state


def clear_leftovers(run_dir: Path) -> bool:
    """Whether there was anything. The caller knows that no supervisor runs in run_dir. Blocks for as long
    as its processes take to end."""
    try:
        state = read_state(run_dir)
    except LLMServeError:  # half a file is a leftover too
        state = None
    else:
        if state is None:
            return False
    if state is not None:
        _end_processes(state)
    (run_dir / STATE_NAME).unlink(missing_ok=True)
    return True


def _noted_shared_memory(state: ClusterState) -> set[str]:
    """Of processes that are gone too. The file is only text: nothing outside of /dev/shm is believed."""
    noted = {str(path) for role in state.roles for path in role.get("shared_memory", ())}
    return {path for path in noted if Path(path).parent == SHARED_MEMORY_DIR}


def _end_processes(state: ClusterState) -> None:
    """Found by their mark alone: the pids in the file may be those of others by now."""
    family = Family(f"{state.cluster_id}/", frozenset())
    segments = shared_memory(members(family)) | _noted_shared_memory(state)
    end(lambda: members(family), TERM_SECONDS)
    remove_unused_shared_memory(segments)
    if f"llmserve-{state.cluster_id[:8]}-" in state.temp_dir:
        shutil.rmtree(state.temp_dir, ignore_errors=True)
