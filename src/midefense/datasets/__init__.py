"""Images of people or things, split into what must not leak (private) and what an attacker may own (public)."""
