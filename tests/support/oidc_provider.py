"""A real OpenID provider (npm oidc-provider, in the versions of tests/support/oidc/package-lock.json)."""

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

_HERE = Path(__file__).parent / "oidc"
_INSTALL_SECONDS = 180.0


class OidcProvider:
    """Life: start -> stop (idempotent). Its keys are its own, and new with each start."""

    def __init__(self, modules: Path) -> None:
        self._modules = modules
        self._process: subprocess.Popen[str] | None = None
        self.issuer = ""

    def start(self) -> None:
        command = ["node", str(_HERE / "server.mjs"), str(self._modules)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        self.issuer = self._process.stdout.readline().strip()
        assert self.issuer.startswith("http://127.0.0.1:"), "it did not start"

    def token(self, scope: str = "llm.use", resource: str = "urn:llmserve") -> str:
        """Returns an access token of the client red-app, whose claim `org` is red."""
        asked = {"grant_type": "client_credentials", "scope": scope, "resource": resource}
        answer = httpx.post(f"{self.issuer}/token", data=asked, auth=("red-app", "red-app-secret"))
        token: str = answer.raise_for_status().json()["access_token"]
        return token

    def keys(self) -> list[dict[str, str]]:
        """Returns its public keys."""
        found: list[dict[str, str]] = httpx.get(f"{self.issuer}/jwks").json()["keys"]
        return found

    def rotate(self) -> None:
        """Signs with a new key of another kind from now on. Those of before are still shown."""
        httpx.post(f"{self.issuer}/test/rotate").raise_for_status()

    def retire(self) -> None:
        """Shows the newest key alone from now on."""
        httpx.post(f"{self.issuer}/test/retire").raise_for_status()

    def give_tokens(self, seconds: int = 600, *, refresh: bool = True) -> None:
        """Its tokens are valid for so long from now on. refresh: and can be renewed."""
        query = {"seconds": seconds, "refresh": int(refresh)}
        httpx.post(f"{self.issuer}/test/tokens", params=query).raise_for_status()

    def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _installed() -> Path:
    """Returns the directory with node_modules, which later runs find again."""
    lock = (_HERE / "package-lock.json").read_bytes()
    there = (
        Path(tempfile.gettempdir()) / f"llmserve-oidc-{os.getuid()}-{hashlib.sha256(lock).hexdigest()[:16]}"
    )
    if not there.exists():
        fresh = Path(tempfile.mkdtemp(prefix="llmserve-oidc-"))
        for name in ("package.json", "package-lock.json"):
            shutil.copy(_HERE / name, fresh)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
        subprocess.run(command, cwd=fresh, check=True, timeout=_INSTALL_SECONDS)
        try:
            fresh.rename(there)
        except OSError:  # another run was faster
            shutil.rmtree(fresh)
    return there


@pytest.fixture(scope="session")
def oidc_provider() -> Iterator[OidcProvider]:
    """One for the whole run."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("npm and node are not installed")
    provider = OidcProvider(_installed())
    provider.start()
    yield provider
    provider.stop()
