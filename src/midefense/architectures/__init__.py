"""Classifiers: images in [0, 1] of any size go in, a `Trace` comes out. One file per family."""
