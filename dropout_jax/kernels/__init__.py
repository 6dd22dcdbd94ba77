"""Accelerator kernels; nothing else imports Pallas."""
