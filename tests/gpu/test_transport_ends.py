"""The contract of tests/conformance/test_transport_ends.py, with memory of a GPU at one end or at both."""

from tests.conformance.test_transport_ends import *  # noqa: F403 - the same tests with the ends of this folder
