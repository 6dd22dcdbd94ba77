"""Trained models for other programs."""

from minigpt.interop.safetensors import export_safetensors, plain_parameters
