"""The logs of a cluster on this machine, whether it runs or not."""

import argparse
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from llmserve.cli.cluster import DEFAULT_MANIFEST, find_cluster
from llmserve.cli.logs.lines import LogLine, Timed, chosen, from_on, last, merged
from llmserve.config.load import load_manifest
from llmserve.core.errors import InvalidRequest, Unavailable
from llmserve.rpc.role import log_folder
from llmserve.runner.logs import LogFollower, begun
from llmserve.runner.state import run_dir_of

_MODEL = "model"  # the step that prepares it has a log, too


class LogFiles:
    """Life: written (once, to its end) -> new, as often as wanted."""

    def __init__(self, folder: Path, names: Sequence[str], now: datetime) -> None:
        self.names = names
        self._follower = LogFollower({name: folder / f"{name}.log" for name in names})
        self._timed = {name: Timed(name, now) for name in names}

    def written(self, count: int | None, since: float | None) -> Iterator[LogLine]:
        """Yields the lines that are there, by time. count: number of the last lines."""
        return merged(from_on(self._of(name, count), since) for name in self.names)

    def _of(self, name: str, count: int | None) -> Iterator[LogLine]:
        return map(self._timed[name].line, last(self._follower.written(name), count))

    def new(self) -> list[LogLine]:
        """Returns the lines written since, by time."""
        lines = [self._timed[name].line(text) for name, text in self._follower.new_lines()]
        return sorted(lines, key=lambda line: line.at)


def log_files(options: argparse.Namespace, now: datetime) -> LogFiles:
    """Errors: NotFound when there is no such process; Unavailable or InvalidRequest when it is not clear
    which cluster is meant."""
    folder, names = _place(options)
    return LogFiles(folder, chosen(names, options.role), now)


def _place(options: argparse.Namespace) -> tuple[Path, list[str]]:
    """Returns the folder of the logs, and the names of their processes."""
    try:
        state = find_cluster(options).state
    except Unavailable:  # it does not run: what it left
        folder = _left(options)
        return folder, begun(folder)
    return Path(state.log_dir), [_MODEL, *(str(role["name"]) for role in state.roles)]


def _left(options: argparse.Namespace) -> Path:
    if options.run_dir:
        return _in_run_dir(Path(options.run_dir))
    if options.file:
        return _there(_of_manifest(Path(options.file)))
    if Path(DEFAULT_MANIFEST).is_file() and (folder := _of_manifest(Path(DEFAULT_MANIFEST))).is_dir():
        return folder
    return _only_one_left()


def _only_one_left() -> Path:
    folders = [path for path in Path(".llmserve").glob("*/logs") if path.is_dir()]
    if len(folders) > 1:
        names = ", ".join(str(path.parent) for path in sorted(folders))
        raise InvalidRequest(f"no cluster runs here, and several did: choose one with --run-dir: {names}")
    if not folders:
        raise Unavailable(
            "no cluster has run here; name its manifest with -f, or its run directory with --run-dir"
        )
    return folders[0]


def _in_run_dir(run_dir: Path) -> Path:
    folder = log_folder(Path(), run_dir, None)
    if not folder.is_dir():  # what has stopped says no more where it wrote
        raise Unavailable(
            f"no cluster has run here: there is no {folder}; if its logs are elsewhere "
            "(observability.log_dir), name its manifest with -f"
        )
    return folder


def _of_manifest(path: Path) -> Path:
    manifest = load_manifest(path)
    return log_folder(path, run_dir_of(manifest, path), manifest.observability.log_dir)


def _there(folder: Path) -> Path:
    if not folder.is_dir():
        raise Unavailable(f"no cluster has run here: there is no {folder}")
    return folder
