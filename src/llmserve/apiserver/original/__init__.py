"""The routes of the original projects, for clients that still call them."""
