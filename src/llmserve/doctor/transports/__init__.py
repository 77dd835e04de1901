"""Whether each transport works between two processes of this machine, and how fast it is.

A transport is tried in processes of its own, with a deadline: C libraries that crash or hang are findings.
  run.py       starts `near.py`, waits for its answer, ends what is left
  near.py      starts `far.py`, reads its memory over the transport, compares, measures
  baseline.py  what the machine could do: a copy in memory, a plain socket
  judge.py     the answers as findings
"""
