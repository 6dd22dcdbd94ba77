"""Every setting of a run and its default: frozen dataclasses and the presets; no JAX."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


def _require(holds: bool, name: str, value: Any, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name}={value!r} is not allowed: it must be {allowed}.")


def _require_counts(config: Any, *names: str) -> None:
    for name in names:
        _require(getattr(config, name) >= 1, name, getattr(config, name), "at least 1")


def _require_rate(name: str, rate: Any) -> None:
    """A traced rate has no value yet: the ops give NaN if it is out of range."""
    if not hasattr(rate, "aval"):
        _require(0 <= rate < 1, name, rate, "a probability of dropping in [0, 1)")


@dataclass(frozen=True)
class DropoutConfig:
    """The rate of each dropout site: the probability of dropping, in [0, 1)."""

    embed: float = 0.0
    """the sum of token and position embeddings"""
    attn_weights: float = 0.0
    """the attention weights after the softmax"""
    attn_context: float = 0.0
    """the context vectors, attention weights times values, before the attention's projection"""
    attn_out: float = 0.0
    """the output of the attention's projection"""
    mlp_hidden: float = 0.0
    """the hidden layer of the MLP, after GELU"""
    mlp_out: float = 0.0
    """the output of the MLP"""
    drop_path: float = 0.0
    """whole residual branches, row by row of the batch"""

    def __post_init__(self):
        for name, rate in vars(self).items():
            _require_rate(f"dropout.{name}", rate)

    @classmethod
    def uniform(cls, rate: float) -> DropoutConfig:
        """The four sites that nanoGPT drops at, at one rate: what `--dropout RATE` sets."""
        _require_rate("dropout", rate)
        return cls(embed=rate, attn_weights=rate, attn_out=rate, mlp_out=rate)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the GPT."""

    n_layer: int = 4
    """transformer blocks"""
    n_head: int = 4
    """attention heads to a block"""
    n_embd: int = 128
    """width, a multiple of n_head"""
    block_size: int = 64
    """tokens of context"""
    bias: bool = False
    """biases in dense layers and layer norms"""
    vocab_size: int | None = None
    """rows of the token table; unset takes the tokenizer's, more leaves rows unused"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """of the computation; parameters, the loss and the optimizer stay float32"""
    remat: bool = False
    """keep a block's input only and compute the block again in the backward pass"""
    norm: Literal["pre", "post"] = "pre"
    """layer norm before each branch (GPT-2), or after each sum and not at the end (GPT-1)"""
    scan_layers: bool = False
    """one compiled block run n_layer times: compiles faster, for deep models"""
    dropout: DropoutConfig = field(default_factory=DropoutConfig)

    def __post_init__(self):
        _require_counts(self, "n_layer", "n_head", "n_embd", "block_size")
        heads = f"a multiple of n_head={self.n_head}"
        _require(self.n_embd % self.n_head == 0, "n_embd", self.n_embd, heads)


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, with a linear warm-up, and a cosine that ends at min_learning_rate after the last."""

    learning_rate: float = 1e-3
    """the highest, at the end of the warm-up"""
    min_learning_rate: float = 1e-4
    """where the cosine ends"""
    warmup_steps: int = 100
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.1
    """of matrices and embeddings; vectors are not decayed"""
    grad_clip: float = 1.0
    """largest global norm of the gradient"""

    def __post_init__(self):
        holds = 0 < self.learning_rate < float("inf")
        _require(holds, "learning_rate", self.learning_rate, "positive and finite")
        in_range = 0 <= self.min_learning_rate <= self.learning_rate
        _require(in_range, "min_learning_rate", self.min_learning_rate, "in [0, learning_rate]")
        _require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "at least 0")
        for name in ("beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        _require(self.grad_clip > 0, "grad_clip", self.grad_clip, "positive")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    data: Path | None = None
    """a UTF-8 text or play:NAME, its last tenth for validation; unset takes Shakespeare's plays"""
    run_dir: Path | None = None
    """where the run is written; unset takes the first free runs/PRESET[-N]"""
    parent: Path | None = None
    """a run whose weights and tokenizer this one begins with, as `minigpt finetune` sets it"""
    parent_checkpoint: Literal["last", "best"] = "last"
    """of the parent; best is that of the lowest validation loss"""
    seed: int = 1337
    """of the weights, the batches and every dropout mask"""
    steps: int = 2000
    batch_size: int = 12
    """rows of block_size tokens in a step"""
    accumulate: int = 1
    """parts of a batch that are computed one after the other, with the masks of the whole batch"""
    label_smoothing: float = 0.0
    """share of each training target that is spread evenly over the vocabulary"""
    mesh: str | None = None
    """devices by axis, such as data=4,fsdp=2,tensor=1; unset spreads the batch over them"""
    tokenizer: Literal["char", "byte"] = "char"
    log_every: int = 10
    """steps between lines of metrics.jsonl"""
    eval_every: int = 250
    """steps between validations; the last step is always validated"""
    eval_batches: int = 20
    """batches, evenly spread over a text, in the validations on the way"""
    patience: int | None = None
    """stop after this many validations without a lower loss; unset trains to the last step"""
    tensorboard: bool = False
    """write the metrics for TensorBoard too, into the run directory"""
    profile_steps: int = 0
    """profile this many steps, once two are made, into the run directory"""
    keep_checkpoints: int = 3
    """the newest that are kept, beside the best by validation"""
    sample_tokens: int = 500
    """tokens of the sample at the end"""
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self):
        _require_counts(self, "steps", "batch_size", "log_every", "eval_every", "eval_batches")
        _require_counts(self, "keep_checkpoints", "accumulate")
        parts = f"a multiple of accumulate={self.accumulate}"
        _require(self.batch_size % self.accumulate == 0, "batch_size", self.batch_size, parts)
        at_least_one = self.patience is None or self.patience >= 1
        _require(at_least_one, "patience", self.patience, "at least 1")
        smooth = 0 <= self.label_smoothing < 1
        _require(smooth, "label_smoothing", self.label_smoothing, "in [0, 1)")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 2^32 - 1")
        for name in ("sample_tokens", "profile_steps"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")


@dataclass(frozen=True)
class ClassifyConfig:
    """How a pretrained run becomes a classifier of texts."""

    pool: Literal["last", "first", "mean"] = "mean"
    """the vector that the head is given: the last real token's, the first's (which has seen nothing
    but itself, for attention is causal), or the mean over the real tokens"""
    head_dropout: float = 0.1
    """rate of the head's two dropouts"""
    dropout: float = 0.1
    """one rate for the body's four sites that nanoGPT drops at"""
    freeze: int | None = None
    """keep the token and position tables and the first N blocks as they are; 0 keeps the tables"""
    class_weights: Literal["none", "balanced"] = "balanced"
    """balanced weighs a class's losses by how rare it is, so that all classes weigh the same"""
    unknown: Literal["error", "drop"] = "error"
    """what becomes of characters that the run does not know"""
    seed: int = 1337
    """of a CSV file's split, the head's weights, the batches and every dropout mask"""
    steps: int = 300
    """at most: see patience"""
    batch_size: int = 32
    eval_every: int = 50
    """steps between looks at the validation part; the best parameters are kept"""
    patience: int | None = 4
    """stop after this many looks without a better macro-F1; None trains to the last step"""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(1e-3, 1e-4, warmup_steps=30))

    def __post_init__(self):
        _require_counts(self, "steps", "batch_size", "eval_every")
        for name in ("head_dropout", "dropout"):
            _require_rate(name, getattr(self, name))
        blocks = self.freeze is None or self.freeze >= 0
        _require(blocks, "freeze", self.freeze, "a number of blocks, or None to train all")
        at_least_one = self.patience is None or self.patience >= 1
        _require(at_least_one, "patience", self.patience, "at least 1")
        _require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 2^32 - 1")


def _shakespeare_char() -> Config:
    model = ModelConfig(6, 6, 384, 256, dropout=DropoutConfig.uniform(0.2))
    return Config(steps=5000, batch_size=64, eval_batches=4, model=model)


def _gpt2() -> Config:
    dropout = DropoutConfig.uniform(0.1)
    model = ModelConfig(12, 12, 768, 1024, bias=True, vocab_size=50257, dropout=dropout)
    optim = OptimConfig(6e-4, 6e-5, warmup_steps=2000, beta2=0.95)
    return Config(steps=600_000, batch_size=12, tokenizer="byte", model=model, optim=optim)


PresetName = Literal["shakespeare-char-cpu", "shakespeare-char", "gpt2"]

# The first two are nanoGPT's published configurations (README and config/train_shakespeare_char.py
# there), number for number; the third is GPT-2's 124M architecture and dropout (Radford et al.,
# 2019) with the optimizer of nanoGPT's config/train_gpt2.py.
PRESETS: dict[PresetName, Config] = {
    "shakespeare-char-cpu": Config(),
    "shakespeare-char": _shakespeare_char(),
    "gpt2": _gpt2(),
}
