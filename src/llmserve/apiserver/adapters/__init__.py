"""LoRA adapters as clients meet them: their names, the choice of one for a request, and their management."""
