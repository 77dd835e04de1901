"""Which workers there are, how fast each is, and what is placed on it. Pure."""
