"""What routers share: who leads, and what the leader knows that nobody tells the next one."""
