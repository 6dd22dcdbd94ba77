"""Other frameworks' masks, bit for bit.

torch.py has PyTorch's, bernoulli.py that of the JAX family, keys.py the keys that reach it.
"""
