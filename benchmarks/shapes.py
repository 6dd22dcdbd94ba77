"""The shapes of the GPTs that are timed: presets of minigpt, and a small Llama."""

import dataclasses
from typing import Any

from minigpt.config import PRESETS, ModelConfig

CHARACTERS, GPT2_TOKENS = 65, 50_257
# 6 layers x 384 like shakespeare-char, with SmolLM2's third of the heads for keys and values.
LLAMA = dataclasses.replace(
    PRESETS["shakespeare-char"].model,
    activation="swiglu",
    norm_type="rmsnorm",
    positions="rotary",
    n_kv_head=2,
    n_inner=1024,
)


def find_model(name: Any) -> tuple[ModelConfig, int]:
    """The model of a preset, or "llama", and the size of its vocabulary."""
    if name == "llama":
        return LLAMA, CHARACTERS
    return PRESETS[name].model, GPT2_TOKENS if name == "gpt2" else CHARACTERS


def transformers_model(model: ModelConfig, vocabulary: int, **rates: float) -> Any:
    """GPT2LMHeadModel or LlamaForCausalLM of this shape, with random weights."""
    import transformers  # pyright: ignore[reportMissingImports]

    tokens: dict[str, Any] = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": None}
    if model.positions == "rotary":
        config = transformers.LlamaConfig(
            hidden_size=model.n_embd,
            intermediate_size=model.mlp_width,
            num_hidden_layers=model.n_layer,
            num_attention_heads=model.n_head,
            num_key_value_heads=model.kv_heads,
            max_position_embeddings=model.block_size,
            tie_word_embeddings=model.tied_head,
            attention_dropout=rates.get("attn_weights", 0.0),
            **tokens,
        )
        return transformers.LlamaForCausalLM(config)
    config = transformers.GPT2Config(
        n_embd=model.n_embd,
        n_layer=model.n_layer,
        n_head=model.n_head,
        n_positions=model.block_size,
        embd_pdrop=rates.get("embed", 0.0),
        attn_pdrop=rates.get("attn_weights", 0.0),
        resid_pdrop=rates.get("mlp_out", 0.0),
        **tokens,
    )
    return transformers.GPT2LMHeadModel(config)
