"""Repeatable measurements. Each figure stands beside its baseline, taken in the same run.

`python -m bench` runs all, `python -m bench latency` one, `python -m bench latency --help` says what it
measures and what can be set. Tables go to docs/performance.md by hand, with the machine they were taken on.
"""
