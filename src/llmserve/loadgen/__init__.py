"""Load for any OpenAI endpoint, and what came of it.

Pure: what to send (kinds, workload, arrivals, prompts), what came back (answer, record) and what it means
(spread, fairness, report, contrast, plot, page). I/O: endpoint (HTTP) and drive (time).
"""
