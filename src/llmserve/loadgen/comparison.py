"""Two clusters under the same load: all that was found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmserve.loadgen.contrast import Contrast, Round, contrasts, verdict
from llmserve.loadgen.record import Record
from llmserve.loadgen.report import About, Report


@dataclass(frozen=True, slots=True)
class Comparison:
    """base, other: their names. reports: of each round, by name."""

    base: str
    other: str
    rounds: Sequence[Round]
    reports: Sequence[Mapping[str, Report]]
    contrasts: Sequence[Contrast]
    verdict: str

    @classmethod
    def of(
        cls, base: str, other: str, rounds: Sequence[Round], reports: Sequence[Mapping[str, Report]]
    ) -> "Comparison":
        """One round or more."""
        found = contrasts(rounds)
        return cls(base, other, rounds, reports, found, verdict(found, base, other, len(rounds)))

    @property
    def names(self) -> tuple[str, str]:
        return self.base, self.other

    @property
    def about(self) -> About:
        """Of the first turn; the others differ in seed and URL."""
        return self.reports[0][self.base].about

    @property
    def served(self) -> dict[str, list[Record]]:
        """The requests of all rounds that were served, by name."""
        records = {
            self.base: [one for turn in self.rounds for one in turn.base],
            self.other: [one for turn in self.rounds for one in turn.other],
        }
        return {name: [one for one in all_of_it if one.served] for name, all_of_it in records.items()}

    @property
    def notes(self) -> list[str]:
        """Each once."""
        return list(
            dict.fromkeys(note for one in self.reports for report in one.values() for note in report.notes)
        )

    def served_words(self, name: str) -> str:
        """In one line."""
        reports = [one[name] for one in self.reports]
        served, sent = sum(one.served for one in reports), sum(one.requests for one in reports)
        good = f", {sum(one.good for one in reports)} within the limits" if reports[0].slo.asks else ""
        kinds = ", ".join(sorted({line.label for one in reports for line in one.failures}))
        return f"{name}: {served} of {sent} requests served{good}{f' (failed: {kinds})' if kinds else ''}"
