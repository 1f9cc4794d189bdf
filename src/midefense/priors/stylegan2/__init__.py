"""StyleGAN2: the generator, its critic, training, and readers of published files."""
