"""Attacks: composed in YAML from the parts in this package."""
