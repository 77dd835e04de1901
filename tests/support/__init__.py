"""Servers and the like that tests of several packages start."""
