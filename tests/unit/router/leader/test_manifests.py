"""What a router knows of the manifest when its term begins."""

from llmserve.config.load import parse_manifest
from llmserve.config.schema import Manifest
from llmserve.core.errors import ManifestError
from llmserve.router.leader.term import Manifests


def _manifest(weight: int) -> Manifest:
    return parse_manifest(
        "kind: LLMServe\nmodels: {primary: {source: 'hub:a/b'}}\n"
        f"scheduling: {{weights: [{{tenant: a, weight: {weight}}}]}}\n",
        "m.yaml",
    )


def test_what_another_leader_reloaded_is_found() -> None:
    there = [_manifest(1)]
    manifests = Manifests(_manifest(1), lambda: there[-1])
    assert manifests.changed() is None
    there.append(_manifest(4))
    assert manifests.changed() == _manifest(4)
    assert manifests.last == _manifest(4)
    assert manifests.changed() is None


def test_a_file_that_is_wrong_is_not_used() -> None:
    def wrong() -> Manifest:
        raise ManifestError("m.yaml:3: no")

    manifests = Manifests(_manifest(1), wrong)
    assert manifests.changed() is None
    assert manifests.last == _manifest(1)


def test_without_a_file_nothing_is_read() -> None:
    assert Manifests().changed() is None
