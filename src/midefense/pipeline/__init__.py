"""Carrying a plan out: every artefact is found in the store or made, upstream first."""
