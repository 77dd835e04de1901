"""The ends of a transfer as fixtures: of the transport suites here, and of tests/gpu.

They need no more than the transports do: a bare machine with a GPU has little else.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from llmserve.rpc.credentials import make_secret
from llmserve.transfer.base import PeerName
from tests.conformance.transport_peer import (
    FAR_BYTES,
    FAR_SEED,
    KINDS,
    MORTAL_BYTES,
    MORTAL_SEED,
    NEAR_BYTES,
    UNTOUCHED,
    End,
    Far,
)
from tests.support.certificates import make_certificates
from tests.support.transports import need_gpu, need_transport


@pytest.fixture(scope="session", params=[name for name in KINDS if not KINDS[name].on_gpu])
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        protect(KINDS[request.param].wires, tmp_path_factory.mktemp("wires"), patch)
        yield from usable(request.param)


def protect(wires: str, folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Gives the processes of a kind what its ends know each other by."""
    if wires == "secret":
        make_secret(folder / "secret")
        patch.setenv("LLMSERVE_CLUSTER_SECRET_FILE", str(folder / "secret"))
    elif wires == "tls":
        make_certificates(folder)
        patch.setenv("LLMSERVE_CERTIFICATES", str(folder))


def usable(name: str) -> Iterator[str]:
    """Skips the tests of a kind for which this machine lacks something."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in KINDS[name].environment.items():
            patch.setenv(variable, value)
        if KINDS[name].on_gpu:
            need_gpu()
        need_transport(KINDS[name].transport)
        yield name


@pytest.fixture(scope="session")
def far(kind: str) -> Iterator[Far]:
    """The peer of most tests: whoever changes its memory restores it."""
    process = Far(kind, FAR_BYTES, FAR_SEED)
    yield process
    process.stop()


@pytest.fixture(scope="session")
def shared_near(kind: str) -> Iterator[End]:
    end = End(kind, (NEAR_BYTES,))
    yield end
    end.close()


@pytest.fixture
def near(shared_near: End) -> End:
    shared_near.local[:] = UNTOUCHED
    return shared_near


@pytest.fixture
def peer(near: End, far: Far) -> PeerName:
    return near.connect(far.description)


@pytest.fixture
def mortal(kind: str) -> Iterator[Far]:
    """A peer of the test's own, to be killed, closed or changed."""
    process = Far(kind, MORTAL_BYTES, MORTAL_SEED)
    yield process
    process.stop()


@pytest.fixture
def own_near(kind: str) -> Iterator[End]:
    """An end of this process, of the test's own."""
    end = End(kind, MORTAL_BYTES)
    end.local[:] = UNTOUCHED
    yield end
    end.close()
