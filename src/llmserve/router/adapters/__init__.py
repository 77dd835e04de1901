"""The LoRA adapters of a cluster: which names there are, and which worker is to hold which version."""
