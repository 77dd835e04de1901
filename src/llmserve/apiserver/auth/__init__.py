"""Who asks: the keys and tokens of clients, and what each of them may do."""
