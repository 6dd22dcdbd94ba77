"""The masks of other frameworks, bit for bit.

torch.py has the masks of PyTorch, bernoulli.py that of the JAX frameworks, keys.py the keys that
these frameworks pass to it. hooks.py and divergence.py compare runs.
"""
