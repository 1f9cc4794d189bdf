"""How latents are improved: each file one way of searching."""
