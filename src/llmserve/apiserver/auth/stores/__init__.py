"""Keys that `llmserve keys` makes: what is kept of them, and where."""
