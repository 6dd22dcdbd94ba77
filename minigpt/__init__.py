"""A small GPT in flax.nnx with dropout at every site, and its trainer."""
