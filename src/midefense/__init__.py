"""midefense: train a classifier with a defense, attack it, measure what leaks."""

__version__ = "0.1.0"
