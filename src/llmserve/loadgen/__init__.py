"""Sends load to any OpenAI endpoint and reports how it was served.

Pure: what to send (workload, load, prompts), what came back (answer), what it means (report, comparison) and
its pages. I/O: endpoint (HTTP) and drive (time).
"""
