"""How the API server of Kubernetes is reached: as kubectl does, by the `kubernetes` package; or as a pod."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

from llmserve.core.addresses import join_address
from llmserve.core.errors import InvalidRequest
from llmserve.k8s.render.objects import Object

JSON = "application/json"
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_SECONDS = 30.0  # for one request


class ApiConnection(Protocol):
    """host: the server's address, for messages."""

    host: str

    def send(
        self, method: str, path: str, query: Mapping[str, str], body: Object | None, content_type: str
    ) -> tuple[int, str]:
        """Returns the status and the text of the answer. Errors: urllib3's HTTPError."""


class KubectlConnection:
    """client: a kubernetes.client.ApiClient."""

    def __init__(self, client: Any) -> None:
        self._client, self.host = client, str(client.configuration.host)

    def send(
        self, method: str, path: str, query: Mapping[str, str], body: Object | None, content_type: str
    ) -> tuple[int, str]:
        headers = {"Accept": JSON, "Content-Type": content_type}
        # The package writes JSON of what is sent as JSON, and no more.
        data = body if content_type == JSON else json.dumps(body)
        verb, url, sent_headers, _, _ = self._client.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params=headers,
            auth_settings=["BearerToken"],
        )
        answer = self._client.call_api(verb, url, sent_headers, data, _request_timeout=_SECONDS)
        return int(answer.status), answer.read().decode(errors="replace")


class PodConnection:
    """With the account of this pod. The package has 126 MiB, so images do without it. folder: has the token,
    which changes, and the authority of the server."""

    def __init__(self, host: str, folder: Path) -> None:
        from urllib3 import PoolManager

        self.host, self._folder = host, folder
        self._pool = PoolManager(ca_certs=str(folder / "ca.crt"), retries=False, timeout=_SECONDS)

    def send(
        self, method: str, path: str, query: Mapping[str, str], body: Object | None, content_type: str
    ) -> tuple[int, str]:
        token = (self._folder / "token").read_text().strip()
        headers = {"Accept": JSON, "Content-Type": content_type, "Authorization": f"Bearer {token}"}
        data = None if body is None else json.dumps(body).encode()
        url = f"{self.host}{path}?{urlencode(query)}"
        answer = self._pool.request(method, url, body=data, headers=headers)
        return answer.status, answer.data.decode(errors="replace")


def connect(context: str | None, account: Path = SERVICE_ACCOUNT) -> ApiConnection:
    """Connects as kubectl does: by $KUBECONFIG or ~/.kube/config, else as a pod. account: the folder of a
    pod's account. Errors: InvalidRequest."""
    file = os.environ.get("KUBECONFIG")
    is_pod = (account / "token").is_file() and "KUBERNETES_SERVICE_HOST" in os.environ
    if is_pod and not (context or file or Path("~/.kube/config").expanduser().is_file()):
        host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
        return PodConnection(f"https://{join_address(host, port)}", account)
    return _by_kubectl(file, context)


def _by_kubectl(file: str | None, context: str | None) -> ApiConnection:
    """Errors: InvalidRequest."""
    try:
        from kubernetes.client import ApiClient, Configuration
        from kubernetes.config import ConfigException, load_kube_config
    except ImportError:
        raise InvalidRequest(
            "--mode k8s needs the package `kubernetes`: pip install 'llmserve[k8s]'"
        ) from None
    configuration = Configuration()
    configuration.retries = False
    try:
        load_kube_config(config_file=file, context=context, client_configuration=configuration)
    except ConfigException as error:
        whose = "no Kubernetes cluster is configured" if context is None else f"--context {context}"
        raise InvalidRequest(f"{whose}: {error}") from error
    return KubectlConnection(ApiClient(configuration))
