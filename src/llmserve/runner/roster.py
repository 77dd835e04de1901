"""The processes of a running cluster, for all who show them: board, state file and page of metrics."""

from collections.abc import Iterable, Iterator

from llmserve.config.plan import ProcessSpec
from llmserve.runner import logs
from llmserve.runner.board import Board, StateWriter
from llmserve.runner.environment import RunPaths
from llmserve.runner.exporter import ClusterExporter


class ProcessRoster:
    """exporter: set when there is one. processes: those of the plan."""

    def __init__(
        self, processes: Iterable[ProcessSpec], board: Board, state: StateWriter, paths: RunPaths
    ) -> None:
        self._processes = {spec.name: spec for spec in processes}
        self._board, self._state, self._paths = board, state, paths
        self.exporter: ClusterExporter | None = None

    def workers(self) -> Iterator[ProcessSpec]:
        return (spec for spec in self._processes.values() if spec.role.is_worker)

    def add(self, processes: Iterable[ProcessSpec]) -> None:
        """Errors: StartFailed when there is no room for a log."""
        for spec in processes:
            logs.begin(self._paths.log(spec.name))
            self._processes[spec.name] = spec
            self._board.add(spec.name)
            if self.exporter is not None:
                self.exporter.add(spec)
        self._show()

    def remove(self, names: Iterable[str]) -> None:
        """Unknown ones are removed already."""
        for name in names:
            spec = self._processes.pop(name, None)
            if spec is None:
                continue
            if self.exporter is not None:
                self.exporter.remove(spec)
            self._board.remove(name)
        self._show()

    def _show(self) -> None:
        self._state.show(tuple(self._processes.values()))
