"""What protects the connections between processes: certificates, TLS, and the proof of the secret."""
