"""A kubelet that runs the pods of a KubeServer as processes of this machine.

Each pod gets a loopback address of its own, as it would get one of the cluster's; names of Services become
the address of their pod, as DNS would make them. Everything else is taken from the pod's spec and the API
server: commands, arguments, variables, ConfigMaps, Secrets, probes.
"""

import os
import re
import subprocess
import sys
import threading
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmserve.models.resolve import default_cache_dir
from tests.support.kube_server import KubeServer

Object = dict[str, Any]
_SERVICES = ("kvmanager", "router", "apiserver", "modelmanager")
_LOOK_SECONDS, _END_SECONDS = 0.2, 60.0


@dataclass(eq=False)
class _RunningPod:
    """is_ready: as its probe has answered last. left: what was wrong at its end."""

    spec: Object
    address: str
    folder: Path
    is_ready: bool = False
    may_run: threading.Event = field(default_factory=threading.Event)
    left: str = ""
    thread: threading.Thread | None = None

    def ready(self) -> bool:
        """Asks as the kubelet would, which has neither the secret nor a certificate."""
        (container,) = self.spec["containers"]
        probe, ports = container["readinessProbe"]["httpGet"], container["ports"]
        (port,) = [one["containerPort"] for one in ports if one["name"] == probe["port"]]
        with suppress(OSError), urllib.request.urlopen(self.url(port) + probe["path"], timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    def url(self, port: int) -> str:
        return f"http://{self.address}:{port}"


class Kubelet:
    """certificates: folder with those of all roles. volume: what the claim of the models is. Life: the
    KubeServer's store asks for pods ... -> close. ended: what was wrong with pods that are gone."""

    def __init__(self, server: KubeServer, cluster: str, certificates: Path, volume: Path) -> None:
        self._server, self._cluster = server, cluster
        self._certificates, self._volume = certificates, volume
        self.pods: dict[str, _RunningPod] = {}
        self.ended: list[str] = []
        self._workers = 0
        server.store.runs, server.store.has_ended = self._runs, self._has_ended

    def close(self) -> None:
        for name in list(self.pods):
            self._has_ended(name)
        for pod in self.pods.values():
            assert pod.thread is not None
            pod.thread.join(_END_SECONDS)

    # -- asked by the store, for each look at pods

    def _runs(self, found: Object) -> bool:
        name = found["metadata"]["name"]
        if name not in self.pods:
            folder = self._volume.parent / name
            folder.mkdir()
            role = found["metadata"]["labels"]["app.kubernetes.io/component"]
            pod = self.pods[name] = _RunningPod(found["spec"], self._address(role), folder)
            self._mount(pod)
            pod.thread = threading.Thread(target=self._run, args=(name, pod))
            pod.may_run.set()
            pod.thread.start()
        return self.pods[name].is_ready

    def _has_ended(self, name: str) -> bool:
        pod = self.pods.get(name)
        if pod is None or pod.thread is None:
            return True
        pod.may_run.clear()
        if pod.thread.is_alive():
            return False
        del self.pods[name]
        if pod.left:
            self.ended.append(f"{name}: {pod.left}")
        return True

    # -- on the pod's thread

    def _run(self, name: str, pod: _RunningPod) -> None:
        for container in pod.spec.get("initContainers", ()):
            if subprocess.run(self._command(pod, container), env=self._env(name, pod, container)).returncode:
                pod.left = "an init container has failed"
                return
        (container,) = pod.spec["containers"]
        with (pod.folder / "log").open("wb") as log:
            command, env = self._command(pod, container), self._env(name, pod, container)
            process = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            while pod.may_run.wait(0) and process.poll() is None:
                pod.is_ready = pod.ready()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_LOOK_SECONDS)
            pod.is_ready = False
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
            if process.returncode != 0:
                pod.left = f"{process.returncode}: {(pod.folder / 'log').read_text()[-2000:]}"
        finally:
            process.kill()
            process.wait()

    # -- what Kubernetes makes of a spec

    def _address(self, role: str) -> str:
        if role in _SERVICES:
            return f"127.7.0.{1 + _SERVICES.index(role)}"
        self._workers += 1
        return f"127.7.1.{self._workers}"

    def _mount(self, pod: _RunningPod) -> None:
        objects = self._server.store.objects
        for volume in pod.spec["volumes"]:
            if "configMap" in volume:
                for name, text in objects["ConfigMap", volume["configMap"]["name"]]["data"].items():
                    (pod.folder / name).write_text(text)
            elif volume["name"] == "secret":
                for name, text in objects["Secret", volume["secret"]["secretName"]]["stringData"].items():
                    (pod.folder / name).touch(mode=0o600)
                    (pod.folder / name).write_text(text)

    def _command(self, pod: _RunningPod, container: Object) -> list[str]:
        words = [*container["command"], *container["args"]]
        assert words[0] == "python"
        return [sys.executable, *(self._here(pod, word) for word in words[1:])]

    def _env(self, name: str, pod: _RunningPod, container: Object) -> dict[str, str]:
        found = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
        if pod.spec["automountServiceAccountToken"]:
            found["KUBECONFIG"] = str(self._server.kubeconfig)
        for one in container["env"]:
            origin = one.get("valueFrom", {})
            if "value" in one:
                found[one["name"]] = self._here(pod, one["value"])
            elif "fieldRef" in origin:
                path = origin["fieldRef"]["fieldPath"]
                found[one["name"]] = {"metadata.name": name, "status.podIP": pod.address}[path]
            else:
                wanted = origin["secretKeyRef"]
                secret = self._server.store.objects.get(("Secret", wanted["name"]), {"stringData": {}})
                if wanted["key"] in secret["stringData"] or not wanted.get("optional"):
                    found[one["name"]] = secret["stringData"][wanted["key"]]
        return found

    def _here(self, pod: _RunningPod, text: str) -> str:
        for role in _SERVICES:
            service = f"{self._cluster}-{role}"
            text = re.sub(rf"\b({service}-0\.)?{service}:", f"{self._address(role)}:", text)
        places = {
            "$(POD_NAME)": pod.folder.name,
            "$(POD_IP)": pod.address,
            "/etc/llmserve-secret": str(pod.folder),
            "/etc/llmserve-certificates": str(self._certificates),
            "/etc/llmserve": str(pod.folder),
            "/var/lib/llmserve/models": str(default_cache_dir()),
            "/var/lib/llmserve": str(self._volume),
            "/tmp": str(pod.folder),
        }
        for place, here in places.items():
            if text.startswith(place):
                return here + text.removeprefix(place)
        return text
