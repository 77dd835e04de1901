"""The edge of HTTP: from the socket to vLLM's application, and what surrounds it."""
