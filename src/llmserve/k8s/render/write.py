"""Objects as text: one YAML file for each, and a kustomization that names them all."""

from collections.abc import Iterable, Mapping

import yaml

from llmserve.k8s.render.names import Object

KUSTOMIZATION = "kustomization.yaml"


def to_yaml(data: Object) -> str:
    """Keys in the order in which they were written down."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=110)


def files(objects: Iterable[Object]) -> Mapping[str, str]:
    """Text by file name."""
    texts = {_file_name(one): to_yaml(one) for one in objects}
    index = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(texts),
    }
    return {**texts, KUSTOMIZATION: to_yaml(index)}


def _file_name(one: Object) -> str:
    return f"{one['kind'].lower()}-{one['metadata']['name']}.yaml"


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, nothing as an alias of something else."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
