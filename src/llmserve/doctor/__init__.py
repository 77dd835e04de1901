"""Finds what can be wrong with this machine, its software, its transports, a manifest, and a running
cluster.

A check is a function from facts (paths, numbers, answers) to a Finding; at most it reads files. examine.py
gathers the facts and puts the findings into sections; `llmserve doctor` shows them. trial.py tries each
transport between two processes (transport_pair.py), baseline.py measures what the machine could do, and
judge.py compares the two.
"""
