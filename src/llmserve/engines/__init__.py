"""Engines: vLLM, and the simulated one. Both pass tests/conformance/test_engine.py."""
