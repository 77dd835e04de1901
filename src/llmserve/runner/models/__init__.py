"""The models of a running cluster: fetched, started and ended as the router orders."""
