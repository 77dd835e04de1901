"""The local supervisor: it plans, starts, supervises and stops the roles as processes, and imports none of
them.

This module stays empty: the guard imports modules of this package without site-packages.
"""
