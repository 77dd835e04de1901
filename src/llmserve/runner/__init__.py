"""The local supervisor: plan, start, ready, supervise, stop. Starts services as processes, imports none.

This module stays empty: the guard imports modules of this package without site-packages.
"""
