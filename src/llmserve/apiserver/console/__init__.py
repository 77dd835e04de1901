"""The console: the page at /ui, and what it asks the apiserver for under /admin/v1 (docs/console.md)."""
