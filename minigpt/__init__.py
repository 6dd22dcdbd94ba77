"""A small GPT in flax.nnx with dropout at every site, and the trainer that people run on it."""
