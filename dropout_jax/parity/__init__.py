"""The masks of other frameworks, bit for bit: torch.py (PyTorch's generators on CPU and CUDA)."""
