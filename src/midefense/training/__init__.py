"""How classifiers learn, and what they say of images."""
