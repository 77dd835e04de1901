"""What can be wrong with this machine, its software, its transports, a manifest, and a running cluster.

A check is a function from facts (paths, numbers, answers) to a Finding; it decides and reads files at most.
examine.py gathers the facts and puts the findings into sections; `llmserve doctor` shows them.
"""
