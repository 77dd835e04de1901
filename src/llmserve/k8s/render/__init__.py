"""Manifest to Kubernetes objects. Pure: no cluster is asked, no file read."""

from llmserve.k8s.render.cluster import RenderTarget, impossible, render, render_model
from llmserve.k8s.render.objects import Object

__all__ = ["Object", "RenderTarget", "impossible", "render", "render_model"]
