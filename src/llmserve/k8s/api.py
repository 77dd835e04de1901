"""The API server of Kubernetes as we use it: a thin layer over the `kubernetes` package, on plain objects."""

import json
import os
from collections.abc import Mapping
from typing import Any

from llmserve.core.errors import InvalidRequest, LLMServeError, Unavailable
from llmserve.k8s.render.objects import Object

FIELD_MANAGER = "llmserve"
_SECONDS = 30.0  # for one request
_APPLY = "application/apply-patch+yaml"
_JSON = "application/json"

# What we make or look at. In the order to make them; the plural is the path's.
_PLURALS: Mapping[tuple[str, str], str] = {
    ("v1", "ServiceAccount"): "serviceaccounts",
    ("v1", "Secret"): "secrets",
    ("v1", "ConfigMap"): "configmaps",
    ("networking.k8s.io/v1", "NetworkPolicy"): "networkpolicies",
    ("v1", "Service"): "services",
    ("policy/v1", "PodDisruptionBudget"): "poddisruptionbudgets",
    ("apps/v1", "StatefulSet"): "statefulsets",
    ("apps/v1", "Deployment"): "deployments",
    ("autoscaling/v2", "HorizontalPodAutoscaler"): "horizontalpodautoscalers",
    ("monitoring.coreos.com/v1", "PodMonitor"): "podmonitors",
    ("monitoring.coreos.com/v1", "PrometheusRule"): "prometheusrules",
    ("v1", "Pod"): "pods",
}
MADE = tuple(pair for pair in _PLURALS if pair[1] != "Pod")


class ApiRefused(LLMServeError):
    """The API server refused a request; the message is its own. code: the HTTP status."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class KubeApi:
    """The objects of one namespace. Every method raises ApiRefused, or Unavailable when the server does not
    answer."""

    def __init__(self, client: Any, namespace: str) -> None:
        """client: a kubernetes.client.ApiClient."""
        self._client = client
        self.namespace = namespace

    def has_namespace(self) -> bool:
        """Whether the namespace exists. It is taken for existing when we may not look."""
        try:
            self._ask("GET", f"/api/v1/namespaces/{self.namespace}")
        except ApiRefused as refused:
            if refused.code == 404:
                return False
            if refused.code != 403:
                raise
        return True

    def make_namespace(self) -> None:
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.namespace}}
        self._ask("POST", "/api/v1/namespaces", {"fieldManager": FIELD_MANAGER}, body, _JSON)

    def get(self, like: Object) -> Object | None:
        """The object of the same kind and name; None when there is none."""
        try:
            return self._ask("GET", self._path_of(like))
        except ApiRefused as refused:
            if refused.code == 404:
                return None
            raise

    def list(self, api: str, kind: str, selector: str) -> list[Object]:
        """The objects of a kind that match the selector; none when the server does not know the kind."""
        try:
            answer = self._ask("GET", self._path(api, kind), {"labelSelector": selector})
        except ApiRefused as refused:
            if refused.code == 404:
                return []
            raise
        return [{"apiVersion": api, "kind": kind, **item} for item in answer["items"]]

    def log(self, pod: str, query: Mapping[str, str]) -> str:
        """The log of a pod. query: the server's own parameters: container, timestamps, sinceTime, tailLines,
        previous."""
        return self._text("GET", f"/api/v1/namespaces/{self.namespace}/pods/{pod}/log", query)

    def apply(self, wanted: Object, *, dry_run: bool = False, force: bool = False) -> Object:
        """Applies the object on the server's side and returns the result. dry_run: nothing is changed. force:
        fields that other managers own are taken over."""
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict", "force": str(force).lower()}
        if dry_run:
            query["dryRun"] = "All"
        return self._ask("PATCH", self._path_of(wanted), query, wanted, _APPLY)

    def delete(self, one: Object) -> None:
        """Deletes the object, and in the background what depends on it. An object that is gone already is no
        error."""
        try:
            self._ask("DELETE", self._path_of(one), {"propagationPolicy": "Background"})
        except ApiRefused as refused:
            if refused.code != 404:
                raise

    def _path(self, api: str, kind: str) -> str:
        root = f"/apis/{api}" if "/" in api else f"/api/{api}"
        return f"{root}/namespaces/{self.namespace}/{_PLURALS[api, kind]}"

    def _path_of(self, one: Object) -> str:
        return f"{self._path(one['apiVersion'], one['kind'])}/{one['metadata']['name']}"

    def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = _JSON,
    ) -> Object:
        found: Object = json.loads(self._text(method, path, query, body, content_type))
        return found

    def _text(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = _JSON,
    ) -> str:
        from urllib3.exceptions import HTTPError

        headers = {"Accept": _JSON, "Content-Type": content_type}
        # The package writes JSON of what is sent as JSON, and no more.
        data = json.dumps(body) if content_type == _APPLY else body
        request = self._client.param_serialize(
            method,
            path,
            query_params=list((query or {}).items()),
            header_params=headers,
            auth_settings=["BearerToken"],
        )
        verb, url, sent_headers, _, _ = request
        try:
            answer = self._client.call_api(verb, url, sent_headers, data, _request_timeout=_SECONDS)
            text: str = answer.read().decode(errors="replace")
        except HTTPError as error:
            host = self._client.configuration.host
            raise Unavailable(f"the Kubernetes API server at {host} does not answer: {error}") from error
        if answer.status >= 300:
            raise ApiRefused(_words(text, answer.status), answer.status)
        return text


def _words(text: str, code: int) -> str:
    """The server's own message, which is in a Status."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {code}: {text.strip()[:500]}"


def connect(namespace: str, context: str | None) -> KubeApi:
    """Connects as kubectl does: by $KUBECONFIG or ~/.kube/config, else as a pod. Errors: InvalidRequest."""
    try:
        from kubernetes.client import ApiClient, Configuration
        from kubernetes.config import ConfigException, load_incluster_config, load_kube_config
    except ImportError:
        raise InvalidRequest(
            "--mode k8s needs the package `kubernetes`: pip install 'llmserve[k8s]'"
        ) from None
    configuration = Configuration()
    configuration.retries = False
    try:
        file = os.environ.get("KUBECONFIG")
        load_kube_config(config_file=file, context=context, client_configuration=configuration)
    except ConfigException as error:
        if context is not None:
            raise InvalidRequest(f"--context {context}: {error}") from error
        try:
            load_incluster_config(client_configuration=configuration)
        except ConfigException:
            raise InvalidRequest(f"no Kubernetes cluster is configured: {error}") from error
    return KubeApi(ApiClient(configuration), namespace)
