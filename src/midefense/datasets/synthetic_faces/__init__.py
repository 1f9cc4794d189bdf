"""Faces of people who do not exist: numbers, traits, shapes, pose, and the renderer."""
