"""One process of a cluster: started, watched, restarted and ended."""
