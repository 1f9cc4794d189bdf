"""What exists: artefacts that are there whole or not at all, and claims on unfinished work."""
