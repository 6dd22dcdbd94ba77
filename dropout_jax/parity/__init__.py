"""Other frameworks' masks, bit for bit: torch.py (PyTorch), bernoulli.py (the JAX family)."""
