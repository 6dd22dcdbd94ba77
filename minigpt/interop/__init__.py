"""Trained models for and from other programs."""

from minigpt.interop.gpt2_weights import gpt2_weights
from minigpt.interop.hub import is_huggingface_model
from minigpt.interop.huggingface import (
    describe_import,
    export_huggingface,
    import_huggingface,
    import_once,
    read_huggingface,
)
from minigpt.interop.safetensors import export_safetensors, plain_parameters
