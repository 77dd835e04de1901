"""The API server of Kubernetes as we use it, on plain objects."""

import json
from collections.abc import Mapping

from llmserve.core.errors import LLMServeError, Unavailable
from llmserve.k8s.connection import JSON, ApiConnection
from llmserve.k8s.render.objects import RBAC, Object

FIELD_MANAGER = "llmserve"
_APPLY = "application/apply-patch+yaml"

# What we make or look at. In the order to make them; the plural is the path's.
_PLURALS: Mapping[tuple[str, str], str] = {
    ("v1", "ServiceAccount"): "serviceaccounts",
    (f"{RBAC}/v1", "Role"): "roles",
    (f"{RBAC}/v1", "RoleBinding"): "rolebindings",
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

    def __init__(self, connection: ApiConnection, namespace: str) -> None:
        self._connection = connection
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
        self._ask("POST", "/api/v1/namespaces", {"fieldManager": FIELD_MANAGER}, body, JSON)

    def get(self, like: Object) -> Object | None:
        """The object of the same kind and name; None when there is none."""
        try:
            return self._ask("GET", self._path_of(like))
        except ApiRefused as refused:
            if refused.code == 404:
                return None
            raise

    def list(self, api: str, kind: str, selector: str) -> list[Object]:
        """The objects of a kind that match the selector; none when the server does not know the kind. Of
        Roles none also when we may not list them: who may not has made none."""
        try:
            answer = self._ask("GET", self._path(api, kind), {"labelSelector": selector})
        except ApiRefused as refused:
            if refused.code == 404 or (refused.code == 403 and api.startswith(RBAC)):
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
        content_type: str = JSON,
    ) -> Object:
        text = self._text(method, path, query, body, content_type)
        try:
            found: Object = json.loads(text)
        except ValueError as error:
            host = self._connection.host
            raise Unavailable(f"what answers at {host} is no Kubernetes API server: {text[:200]}") from error
        return found

    def _text(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
        content_type: str = JSON,
    ) -> str:
        from urllib3.exceptions import HTTPError

        try:
            status, text = self._connection.send(method, path, query or {}, body, content_type)
        except (HTTPError, OSError) as error:  # OSError: the token of a pod cannot be read
            host = self._connection.host
            raise Unavailable(f"the Kubernetes API server at {host} does not answer: {error}") from error
        if status >= 300:
            raise ApiRefused(_words(text, status), status)
        return text


def _words(text: str, code: int) -> str:
    """The server's own message, which is in a Status."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {code}: {text.strip()[:500]}"
