"""A look at a whole cluster, which `llmserve status` and the console share (docs/console.md)."""
