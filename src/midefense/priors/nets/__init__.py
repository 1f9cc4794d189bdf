"""Generators and critics under their published shapes."""
