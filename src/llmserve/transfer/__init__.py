"""Moving KV bytes between processes."""
