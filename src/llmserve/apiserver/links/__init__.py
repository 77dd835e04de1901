"""The streams to the router and to the workers."""
