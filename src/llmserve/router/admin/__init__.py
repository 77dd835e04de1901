"""What operators ask of the router, and what the router asks of all apiservers."""
