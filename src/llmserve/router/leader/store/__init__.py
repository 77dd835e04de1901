"""State that the routers of a cluster share: who leads, and what the last leader saved."""
