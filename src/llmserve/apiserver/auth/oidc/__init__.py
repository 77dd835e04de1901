"""Tokens of OpenID Connect: who issued them, whether they are right, and who asks with them."""
