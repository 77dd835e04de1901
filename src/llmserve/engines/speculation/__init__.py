"""Whether speculation pays on an engine: measured in its steps, and switched by that."""
