"""Families of another registry, on our page."""

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from llmserve.metrics.merge import Page, merged
from llmserve.metrics.passed_on import PassedOn


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
