"""What operators ask of the router, and the router of all apiservers."""
