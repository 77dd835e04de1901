import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from llmserve.metrics.merge import Page, merged


def _text(count: int) -> str:
    registry = CollectorRegistry()
    Counter("seen_total", 'A "help" {with} braces', ("kind",), registry=registry).labels("a b{c").inc(count)
    Histogram("waited_seconds", "Waits", registry=registry, buckets=(1.0,)).observe(0.5)
    return generate_latest(registry).decode()


def test_each_family_once_with_the_samples_of_all() -> None:
    text = merged([Page({"process": "a"}, _text(1)), Page({"process": "b"}, _text(2))])
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert text.count("# TYPE seen_total ") == text.count("# HELP seen_total ") == 1
    samples = {tuple(s.labels.items()): s.value for s in families["seen"].samples if s.name == "seen_total"}
    assert samples == {
        (("process", "a"), ("kind", "a b{c")): 1.0,
        (("process", "b"), ("kind", "a b{c")): 2.0,
    }
    counts = [s for s in families["waited_seconds"].samples if s.name.endswith("_count")]
    assert [(s.labels, s.value) for s in counts] == [({"process": "a"}, 1.0), ({"process": "b"}, 1.0)]


def test_a_label_is_escaped() -> None:
    odd = 'a"b\\c\nd'
    (family,) = text_string_to_metric_families(merged([Page({"process": odd}, "# TYPE x gauge\nx 1\n")]))
    assert family.samples[0].labels == {"process": odd}


def test_a_line_ends_at_a_newline_only() -> None:
    text = merged([Page({"process": "a"}, '# TYPE x gauge\nx{kind="b\u2028c"} 1\n')])
    assert text == '# TYPE x gauge\nx{process="a",kind="b\u2028c"} 1\n'


@pytest.mark.parametrize("pages", [[], [Page({"process": "a"}, "")]])
def test_nothing_is_an_empty_page(pages: list[Page]) -> None:
    assert merged(pages) == ""
