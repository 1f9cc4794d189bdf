"""Defenses: eight hooks, one per place where a defense can bite. One file per defense."""
