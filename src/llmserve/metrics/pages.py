"""Pages of metrics put together: of several processes, and of a library's own registry."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_HEADS = ("# HELP ", "# TYPE ")


@dataclass(frozen=True, slots=True)
class Page:
    """labels: added to each sample; no sample has one of them already."""

    labels: Mapping[str, str]
    text: str


@dataclass(slots=True)
class _Family:
    head: list[str] = field(default_factory=list)
    samples: list[str] = field(default_factory=list)


def merged(pages: Iterable[Page]) -> str:
    """One page with each family once, as the format demands; its text is that of the first page that has
    it."""
    families: dict[str, _Family] = {}
    for page in pages:
        _add(families, page)
    return "".join(f"{line}\n" for family in families.values() for line in (*family.head, *family.samples))


def _add(families: dict[str, _Family], page: Page) -> None:
    known = frozenset(families)
    labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in page.labels.items())
    current = _Family()
    for name, line in _lines(page.text):
        if name:
            current = families.setdefault(name, _Family())
            if name not in known:
                current.head.append(line)
        else:
            current.samples.append(_labelled(line, labels))


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Yields the family and the line of a head, and an empty name with the line of a sample."""
    for line in text.split("\n"):  # and nothing else that splitlines takes for the end of a line
        if line.startswith(_HEADS):
            yield line.split(" ", 3)[2], line
        elif line and not line.startswith("#"):
            yield "", line


def _labelled(sample: str, labels: str) -> str:
    name, brace, rest = sample.partition("{")
    if brace and " " not in name:
        return f"{name}{{{labels},{rest}"
    name, _, value = sample.partition(" ")
    return f"{name}{{{labels}}} {value}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


class PassedOn(Collector):
    """The families of `source` whose names begin with `prefix`, without those in `left_out`, as they are at
    the scrape."""

    def __init__(
        self, source: CollectorRegistry, prefix: str, left_out: frozenset[str] = frozenset()
    ) -> None:
        self._source, self._prefix, self._left_out = source, prefix, left_out

    def collect(self) -> Iterator[Metric]:
        for family in self._source.collect():
            if family.name.startswith(self._prefix) and family.name not in self._left_out:
                yield family
