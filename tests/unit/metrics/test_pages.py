"""Pages of metrics put together."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from llmserve.metrics.pages import Page, PassedOn, merged


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


def theirs() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("vllm:num_requests_running", "Running", ("engine",), registry=registry).labels("0").set(3)
    Counter("vllm:generation_tokens", "Tokens", ("engine",), registry=registry).labels("0").inc(7)
    Gauge("vllm:names", "Of adapters", ("names",), registry=registry).labels("a,b").set(1)
    Gauge("process_threads", "Not the library's", registry=registry)
    return registry


def page() -> str:
    ours = CollectorRegistry()
    Gauge("kv_used_blocks", "Ours", registry=ours)
    ours.register(PassedOn(theirs(), "vllm:", frozenset({"vllm:names"})))
    return generate_latest(ours).decode()


def test_families_of_the_prefix_come_under_their_names() -> None:
    assert "kv_used_blocks 0.0" in page()
    assert 'vllm:num_requests_running{engine="0"} 3.0' in page()
    assert 'vllm:generation_tokens_total{engine="0"} 7.0' in page()


def test_others_and_those_left_out_do_not() -> None:
    assert "process_threads" not in page()
    assert "vllm:names" not in page()


def test_a_value_is_that_of_the_scrape() -> None:
    source, ours = CollectorRegistry(), CollectorRegistry()
    running = Gauge("vllm:num_requests_running", "Running", registry=source)
    ours.register(PassedOn(source, "vllm:"))
    running.set(1)
    assert ours.get_sample_value("vllm:num_requests_running") == 1
    running.set(2)
    assert ours.get_sample_value("vllm:num_requests_running") == 2


def test_what_comes_later_is_passed_on_too() -> None:
    source, ours = CollectorRegistry(), CollectorRegistry()
    ours.register(PassedOn(source, "vllm:"))
    Gauge("vllm:late", "Late", registry=source).set(1)
    assert ours.get_sample_value("vllm:late") == 1


def test_the_cluster_page_says_whose_they_are() -> None:
    together = merged([Page({"process": name}, page()) for name in ("decode-0", "decode-1")])
    for name in ("decode-0", "decode-1"):
        assert f'vllm:num_requests_running{{process="{name}",engine="0"}} 3.0' in together
    assert together.count("# TYPE vllm:num_requests_running ") == 1
