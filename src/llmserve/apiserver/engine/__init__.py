"""The cluster as vLLM's serving layer sees it: an engine client."""
