"""Folders and GGUF files of tiny random Llama models, as transformers and llama.cpp save them."""

import json
import pathlib
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gpt2_folders import ALPHABET, TOKENS, save_model

from minigpt.data import SubwordTokenizer, build_tokenizer

SIZES = {
    **{"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 16},
    **{"rms_norm_eps": 1e-5, "rope_theta": 500.0, "tie_word_embeddings": True},
}
TEXT = "The year 1989 — don't stop, don't shout: it's 12 o'clock.\n\n  ça 日本\n" * 20


def make_llama(seed=0, **options: Any) -> Any:
    """A model with larger random numbers than the initial ones, also in norms."""
    torch.manual_seed(seed)
    values: dict[str, Any] = SIZES | TOKENS | options
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def save_llama(folder: pathlib.Path, model=None, alphabet=ALPHABET, **options: Any) -> pathlib.Path:
    """Save a model, by default a new one, and a tokenizer of characters."""
    return save_model(folder, model or make_llama(), alphabet, **options)


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


GGUF_NAMES = {
    **{"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"},
    **{"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"},
    **{"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"},
    **{"mlp.down_proj": "ffn_down"},
}


def gguf_arrays(model) -> dict[str, np.ndarray]:
    """The arrays of a file, with the names and the order of rows that llama.cpp's converter has."""
    arrays, config = {}, model.config
    for name, tensor in model.state_dict().items():
        array, parts = tensor.detach().float().numpy(), name.split(".")
        if parts[1] == "layers":
            layer = GGUF_NAMES[".".join(parts[3:-1])]
            heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
            array = permute(array, heads[layer]) if layer in heads else array
            arrays[f"blk.{parts[2]}.{layer}.{parts[-1]}"] = array
        elif name == "lm_head.weight":
            if not config.tie_word_embeddings:
                arrays["output.weight"] = array
        else:
            ours = {"embed_tokens": "token_embd", "norm": "output_norm"}[parts[1]]
            arrays[f"{ours}.weight"] = array
    return arrays


def learn_tokenizer(vocab_size) -> SubwordTokenizer:
    learned = build_tokenizer("bpe", TEXT, vocab_size)
    assert isinstance(learned, SubwordTokenizer)
    return learned


def gguf_metadata(model, pattern="smollm") -> dict[str, Any]:
    config, learned = (
        model.config,
        json.loads(learn_tokenizer(model.config.vocab_size).tokenizer_json),
    )
    vocabulary = learned["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.get)
    return {
        "general.type": "model",
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": config.rope_parameters["rope_theta"],
        "llama.rope.dimension_count": config.head_dim,
        "llama.vocab_size": config.vocab_size,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pattern,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * len(tokens),
        "tokenizer.ggml.merges": [" ".join(merge) for merge in learned["model"]["merges"]],
    }


def write_gguf(path, metadata, arrays, kind="F32", architecture="llama") -> pathlib.Path:
    """Write a file by llama.cpp's library; matrices are of this kind, vectors F32."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(name, value)
        else:
            adds = {bool: writer.add_bool, str: writer.add_string, float: writer.add_float32}
            adds.get(type(value), writer.add_uint32)(name, value)
    for name, array in arrays.items():
        dtype = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quantize(array, dtype), raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
