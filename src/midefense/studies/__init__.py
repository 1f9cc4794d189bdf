"""Experiments over the pipeline: many runs, and what follows from them."""
