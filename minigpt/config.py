"""Every setting of a run and its default: frozen dataclasses and the presets; no JAX."""

from __future__ import annotations

import functools
import numbers
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints

_SIMPLE = {int: "an integer", float: "a number", bool: "True or False"}
_SIMPLE |= {str: "text", NoneType: "None"}


def _require(is_valid: bool, name: str, value: Any, allowed: str) -> None:
    if not is_valid:
        raise ValueError(f"{name}={value!r} is not allowed: it must be {allowed}.")


@functools.cache
def _simple_hints(cls: type) -> dict[str, tuple[type, ...]]:
    """The types of each field that takes numbers, truth values, text, None or other settings."""
    hints = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(cls).items()}
    return {
        each.name: hints[each.name]
        for each in fields(cls)
        if all(kind in _SIMPLE or is_dataclass(kind) for kind in hints[each.name])
    }


def _require_types(config: Any, prefix: str = "") -> None:
    """Refuse a value of another type than the field's, such as steps="20" or steps=2.5."""
    for name, types in _simple_hints(type(config)).items():
        value = getattr(config, name)
        if not any(_has_type(value, each) for each in types):
            words = (_SIMPLE.get(each, f"a {each.__name__}") for each in types)
            _require(False, prefix + name, value, " or ".join(words))


def _has_type(value: Any, kind: type) -> bool:
    """Whether a value is of a kind of number; a traced rate is a float."""
    if kind is float:
        is_number = isinstance(value, numbers.Real) or hasattr(value, "aval")
        return is_number and not isinstance(value, bool)
    if kind is int:
        return hasattr(value, "__index__") and not isinstance(value, bool)
    return isinstance(value, kind)


def _require_counts(config: Any, *names: str) -> None:
    for name in names:
        _require(getattr(config, name) >= 1, name, getattr(config, name), "at least 1")


def _require_optional_count(config: Any, name: str, otherwise: str) -> None:
    value = getattr(config, name)
    _require(value is None or value >= 1, name, value, f"at least 1, or {otherwise}")


def require_seed(seed: Any) -> None:
    """Raise ValueError unless a seed is an integer of 32 bits; JAX would cut a larger one."""
    try:
        number = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        number = -1
    _require(0 <= number < 2**32, "seed", seed, "an integer from 0 to 2^32 - 1")


def _as_path(name: str, path: Path | str | None) -> Path | None:
    """A path, or None; config.toml, which is UTF-8, must be able to store its name."""
    if path is None:
        return None
    _require(isinstance(path, str | Path), name, path, "a path or None")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{name}={str(path)!r} is not allowed: it must be a name in UTF-8. Rename it, or use a "
            "link with another name."
        ) from None
    return Path(path)


def _as_paths(name: str, paths: Any) -> tuple[Path, ...] | None:
    """Several paths; one may be given without a tuple."""
    if paths is None:
        return None
    is_sequence = isinstance(paths, Sequence) and all(isinstance(p, str | Path) for p in paths)
    allowed = "a path, several paths in a list, or None"
    _require(isinstance(paths, Path) or is_sequence, name, paths, allowed)
    several = (paths,) if isinstance(paths, str | Path) else tuple(paths)
    _require(len(several) > 0, name, paths, "at least one file or folder")
    return tuple(path for path in (_as_path(name, path) for path in several) if path)


def _require_rate(name: str, rate: Any) -> None:
    """Check a concrete rate. A traced rate has no value yet: out of range, it gives NaN later."""
    if not hasattr(rate, "aval"):
        _require(0 <= rate < 1, name, rate, "a probability of dropping in [0, 1)")


Checkpoint = Literal["last", "best"] | int
"""a checkpoint of a run: the newest, the one with the lowest validation loss, or that of a step"""


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
    """whole residual branches, separately for each row of the batch"""
    lora: float = field(default=0.0, metadata={"option": "lora-dropout"})
    """LoRA: the input of B A, which leaves the input of W as it is"""
    over_depth: Literal["constant", "linear"] = field(default="constant", kw_only=True)
    """linear: the rates of every site in the blocks grow from 0 in the first block to the given
    rate in the last, for drop_path the usual stochastic depth; embed keeps its rate"""

    def __post_init__(self) -> None:
        _require_types(self, "dropout.")
        for name, rate in self.rates.items():
            _require_rate(f"dropout.{name}", rate)
        allowed = "'constant' or 'linear'"
        is_known = self.over_depth in ("constant", "linear")
        _require(is_known, "dropout.over_depth", self.over_depth, allowed)

    @property
    def rates(self) -> dict[str, Any]:
        """The rate of each site by its name, without over_depth."""
        return {name: value for name, value in vars(self).items() if name != "over_depth"}

    @classmethod
    def uniform(cls, rate: float) -> DropoutConfig:
        """One rate for nanoGPT's four dropout sites; `--dropout RATE` sets it."""
        _require_rate("dropout", rate)
        return cls(embed=rate, attn_weights=rate, attn_out=rate, mlp_out=rate)


# The dense layers that LoRA can adapt, in the order of the forward pass.
LORA_TARGETS = ("qkv", "out", "mlp_in", "mlp_gate", "mlp_out")


@dataclass(frozen=True)
class LoraConfig:
    """LoRA (Hu et al., 2021): y = W x + (alpha / rank) B A dropout(x); only A and B are trained.

    >>> LoraConfig(rank=8, alpha=16, targets="mlp_out, qkv").targets
    'qkv,mlp_out'
    """

    rank: int | None = field(default=None, metadata={"option": "lora-rank"})
    """LoRA: train only A and B, of this rank, beside the weights of the parent; None: no LoRA"""
    alpha: float | None = field(default=None, metadata={"option": "lora-alpha"})
    """LoRA: B A x is multiplied by alpha / rank; None: the rank, so by 1"""
    targets: str = field(default="qkv,out", metadata={"option": "lora-targets"})
    """LoRA: the dense layers with A and B: some of qkv (queries, keys and values), out (of the
    attention), mlp_in, mlp_gate (of swiglu), mlp_out"""

    def __post_init__(self) -> None:
        _require_types(self, "lora.")
        names = self.targets.split(",") if isinstance(self.targets, str) else list(self.targets)
        names = [name.strip() for name in names]
        is_known = bool(names) and set(names) <= {*LORA_TARGETS}
        allowed = f"some of {','.join(LORA_TARGETS)}, such as qkv,out. Change --lora-targets"
        _require(is_known, "lora.targets", self.targets, allowed)
        in_order = ",".join(name for name in LORA_TARGETS if name in names)
        object.__setattr__(self, "targets", in_order)
        is_count = self.rank is None or (type(self.rank) is int and self.rank >= 1)
        allowed = "an integer from 1, or None for no LoRA. Set --lora-rank 8"
        _require(is_count, "lora.rank", self.rank, allowed)
        is_positive = self.alpha is None or 0 < self.alpha < float("inf")
        allowed = "positive and finite, or None for the rank. Change --lora-alpha"
        _require(is_positive, "lora.alpha", self.alpha, allowed)
        for name in ("alpha", "targets"):
            default = type(self).__dataclass_fields__[name].default
            is_read = self.rank is not None or getattr(self, name) == default
            allowed = f"{default} without LoRA. Set --lora-rank too, such as --lora-rank 8"
            _require(is_read, f"lora.{name}", getattr(self, name), allowed)

    @property
    def scale(self) -> float:
        """The factor of B A x."""
        assert self.rank is not None
        return (self.rank if self.alpha is None else self.alpha) / self.rank

    def adapts(self, layer: str) -> bool:
        """Whether the dense layer of this name has A and B."""
        return self.rank is not None and layer in self.targets.split(",")


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the GPT."""

    n_layer: int = 4
    """transformer blocks"""
    n_head: int = 4
    """attention heads per block"""
    n_embd: int = 128
    """embedding width, a multiple of n_head"""
    block_size: int = 64
    """context length in tokens"""
    bias: bool = False
    """biases in dense layers and layer norms"""
    activation: Literal["gelu", "gelu_tanh", "relu", "swiglu"] = "gelu_tanh"
    """of the MLP's hidden layer; gelu: x * Phi(x), as in nanoGPT; gelu_tanh: its approximation by
    tanh, as in GPT-2; relu: as in the first Transformer; swiglu: silu(gate(x)) * wide(x), with a
    dense layer more, as in Llama"""
    vocab_size: int | None = None
    """rows of the token table; None: the tokenizer's vocabulary; extra rows stay unused"""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """dtype of the computation; parameters, the loss and the optimizer stay float32"""
    remat: bool = False
    """save memory: keep only each block's input and recompute the block in the backward pass"""
    norm: Literal["pre", "post"] = "pre"
    """pre: layer norm before each branch, and at the end (GPT-2); post: after each residual sum
    (GPT-1)"""
    scan_layers: bool = False
    """compile one block and run it n_layer times: faster to compile, for deep models"""
    norm_type: Literal["layernorm", "rmsnorm"] = "layernorm"
    """layernorm: subtract the mean, divide by the standard deviation (GPT-2); rmsnorm: divide by
    the root of the mean square, without a bias (Llama)"""
    norm_epsilon: float = 1e-5
    """added to the variance, or to the mean square, in the norms"""
    positions: Literal["learned", "rotary"] = "learned"
    """learned: a table of block_size positions is added to the tokens (GPT-2); rotary: queries and
    keys are rotated by angles that grow with the position (Llama)"""
    rope_theta: float = 10_000.0
    """base of the wavelengths of rotary positions; 10000 with learned ones"""
    n_kv_head: int | None = None
    """heads of keys and values, of which each serves n_head / n_kv_head heads of queries; None:
    n_head"""
    n_inner: int | None = None
    """width of the MLP's hidden layer; None: 4 * n_embd"""
    tied_head: bool = True
    """the output layer shares its weights with the token table"""
    dropout: DropoutConfig = field(default_factory=DropoutConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        _require_types(self)
        _require_counts(self, "n_layer", "n_head", "n_embd", "block_size")
        allowed = f"a multiple of n_head={self.n_head}"
        _require(self.n_embd % self.n_head == 0, "n_embd", self.n_embd, allowed)
        _require_optional_count(self, "n_kv_head", f"None for n_head={self.n_head}")
        allowed = f"a divisor of n_head={self.n_head}"
        _require(self.n_head % self.kv_heads == 0, "n_kv_head", self.n_kv_head, allowed)
        _require_optional_count(self, "n_inner", "None for 4 * n_embd")
        self._require_names()
        self._require_positions()
        is_positive = 0 < self.norm_epsilon < float("inf")
        _require(is_positive, "norm_epsilon", self.norm_epsilon, "positive and finite")
        self._require_lora()

    def _require_names(self) -> None:
        for name, allowed in (
            ("activation", ("gelu", "gelu_tanh", "relu", "swiglu")),
            ("norm_type", ("layernorm", "rmsnorm")),
            ("positions", ("learned", "rotary")),
        ):
            value = getattr(self, name)
            _require(value in allowed, name, value, f"one of {', '.join(allowed)}")

    def _require_positions(self) -> None:
        theta, is_rotary = self.rope_theta, self.positions == "rotary"
        _require(0 < theta < float("inf"), "rope_theta", theta, "positive and finite")
        allowed = "10000.0 unless positions='rotary'. Set --model.positions rotary too"
        _require(is_rotary or theta == 10_000.0, "rope_theta", theta, allowed)
        allowed = f"learned, or n_embd / n_head = {self.n_embd // self.n_head} even"
        is_even = self.n_embd // self.n_head % 2 == 0
        _require(not is_rotary or is_even, "positions", self.positions, allowed)

    def _require_lora(self) -> None:
        rank, rate = self.lora.rank, self.dropout.lora
        largest = min(self.n_embd, self.mlp_width)
        allowed = f"at most {largest}, the smaller side of the layers. Lower --lora-rank"
        _require(rank is None or rank <= largest, "lora.rank", rank, allowed)
        has_gate = self.activation == "swiglu" or "mlp_gate" not in self.lora.targets.split(",")
        allowed = "without mlp_gate, which only a model with activation='swiglu' has"
        _require(has_gate, "lora.targets", self.lora.targets, allowed)
        has_effect = rank is not None or hasattr(rate, "aval") or not rate
        allowed = "0 without LoRA. Set --lora-rank too, such as --lora-rank 8"
        _require(has_effect, "dropout.lora", rate, allowed)

    def without_lora(self) -> ModelConfig:
        """The model with its LoRA layers merged into the dense layers."""
        return replace(self, lora=LoraConfig(), dropout=replace(self.dropout, lora=0.0))

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> ModelConfig:
        """The settings from the table that dataclasses.asdict makes of them."""
        parts = {"dropout": DropoutConfig, "lora": LoraConfig}
        tables = {name: part(**table.get(name, {})) for name, part in parts.items()}
        return cls(**(table | tables))

    @property
    def kv_heads(self) -> int:
        """The number of heads of keys and values."""
        return self.n_head if self.n_kv_head is None else self.n_kv_head

    @property
    def mlp_width(self) -> int:
        """The width of the MLP's hidden layer."""
        return 4 * self.n_embd if self.n_inner is None else self.n_inner


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with a linear warm-up and a cosine decay to min_learning_rate at the last step."""

    learning_rate: float = 1e-3
    """peak learning rate, at the end of the warm-up"""
    min_learning_rate: float | None = None
    """learning rate at the end of the cosine; None: a tenth of learning_rate"""
    warmup_steps: int = 100
    """steps of the linear warm-up"""
    beta1: float = 0.9
    """decay of AdamW's first moment"""
    beta2: float = 0.99
    """decay of AdamW's second moment"""
    weight_decay: float = 0.1
    """weight decay of matrices and embeddings; vectors are not decayed"""
    grad_clip: float = 1.0
    """gradients are clipped to this global norm"""

    def __post_init__(self) -> None:
        _require_types(self)
        is_positive = 0 < self.learning_rate < float("inf")
        _require(is_positive, "learning_rate", self.learning_rate, "positive and finite")
        in_range = 0 <= self.final_learning_rate <= self.learning_rate
        allowed = f"in [0, learning_rate={self.learning_rate}], or None for a tenth of it"
        _require(in_range, "min_learning_rate", self.min_learning_rate, allowed)
        _require(self.warmup_steps >= 0, "warmup_steps", self.warmup_steps, "at least 0")
        for name in ("beta1", "beta2"):
            _require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        _require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "at least 0")
        _require(self.grad_clip > 0, "grad_clip", self.grad_clip, "positive")

    @property
    def final_learning_rate(self) -> float:
        """The learning rate at the end of the cosine."""
        minimum = self.min_learning_rate
        return self.learning_rate / 10 if minimum is None else minimum


DropoutSchedule = Literal["constant", "linear", "early", "late", "curriculum"]


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    data: tuple[Path, ...] | None = None
    """the text: UTF-8 files, also .gz, .jsonl, .parquet and .arrow, folders of such files, or
    play:NAME, joined with blank lines; or .jsonl files of conversations, for instruction tuning;
    the last tenth is for validation; None: all of Shakespeare's plays"""
    val_data: tuple[Path, ...] | None = None
    """a validation text of its own, named like data; then all of data is for training"""
    text_field: str = "text"
    """field with the text in .jsonl, .parquet and .arrow files"""
    run_dir: Path | None = None
    """directory to write the run to; None: an unfinished run with the same settings, or the
    first unused name of runs/PRESET, runs/PRESET-2, ..."""
    parent: Path | None = None
    """run that provides the initial weights and the tokenizer; `minigpt finetune` sets it"""
    parent_checkpoint: Literal["last", "best"] = "last"
    """checkpoint of the parent; best: the one with the lowest validation loss"""
    freeze: int | None = None
    """fine-tuning: keep the parent's embeddings and first N blocks as they are; 0: the embeddings
    only; None: train everything. With LoRA: its layers in the first N blocks stay without effect"""
    seed: int = 1337
    """seed of the weights, the batches and every dropout mask"""
    steps: int = 2000
    """training steps"""
    batch_size: int = 12
    """rows of block_size tokens per step"""
    accumulate: int = 1
    """split each batch into this many parts, one after the other, to save memory; the dropout masks
    stay the same"""
    label_smoothing: float = 0.0
    """share of each training target that is spread evenly over the vocabulary"""
    mesh: str | None = None
    """devices per axis, such as data=4,fsdp=2,tensor=1; None: split the batch over all devices
    that divide it"""
    tokenizer: str = "char"
    """char: one token per distinct character of the text; byte: one token per UTF-8 byte; gpt2:
    GPT-2's 50,257 subwords; bpe: subwords learned from the training text, see vocab_size; or a
    tokenizer.json of the tokenizers library, or a folder with one or with vocab.json and
    merges.txt. The run keeps a copy"""
    vocab_size: int | None = None
    """number of tokens that --tokenizer bpe learns, at least the 256 bytes; None: 4096"""
    log_every: int = 10
    """steps between lines of metrics.jsonl"""
    eval_every: int = 250
    """steps between validations, each with a checkpoint; the last step is always validated"""
    eval_batches: int = 20
    """batches per validation, spread evenly over the text"""
    patience: int | None = None
    """stop after this many validations without a lower loss, counted anew after --extend; None:
    train to the last step"""
    tensorboard: bool = False
    """also write the metrics for TensorBoard, to the run directory"""
    wandb: bool = False
    """also send the metrics to Weights & Biases (wandb), to the project minigpt"""
    profile_steps: int = 0
    """profile this many steps, after two warm-up steps, to the run directory"""
    keep_checkpoints: int = 3
    """keep this many of the newest checkpoints, and the best by validation loss"""
    sample_tokens: int = 500
    """tokens of the sample that is printed at the end"""
    sample_every: int | None = None
    """also print a sample after a validation, at most one in this many steps (1: after each); None:
    at the end only"""
    dropout_schedule: DropoutSchedule = "constant"
    """how the dropout rates change over the steps. linear: from the rate down to 0; early: the
    rate, then 0; late: 0, then the rate; curriculum: from 0 up towards the rate, exponentially"""
    dropout_schedule_steps: int | None = None
    """linear: the rate is 0 from this step on; early and late: the step of the change; curriculum:
    rate * (1 - exp(-10 * step / this)). None: steps, or steps // 2 for early and late"""
    extended_from: tuple[tuple[int, int], ...] = field(default=(), metadata={"is_option": False})
    """(step, steps) of each extension: the steps before `step` were trained as those of a run of
    `steps` steps; the run directory keeps it"""
    imported_from: str | None = field(default=None, metadata={"is_option": False})
    """the Hugging Face folder or model that `minigpt import` made the run from: a run with weights
    and a tokenizer, but without a text, training steps and an optimizer state"""
    model: ModelConfig = field(default_factory=ModelConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        _require_types(self)
        for name in ("data", "val_data"):
            object.__setattr__(self, name, _as_paths(name, getattr(self, name)))
        for name in ("run_dir", "parent"):
            object.__setattr__(self, name, _as_path(name, getattr(self, name)))
        self._require_tokenizer()
        _require_counts(self, "steps", "batch_size", "log_every", "eval_every", "eval_batches")
        _require_counts(self, "keep_checkpoints", "accumulate")
        allowed = f"a multiple of accumulate={self.accumulate}"
        _require(self.batch_size % self.accumulate == 0, "batch_size", self.batch_size, allowed)
        _require_optional_count(self, "patience", "None to train to the last step")
        in_range = 0 <= self.label_smoothing < 1
        _require(in_range, "label_smoothing", self.label_smoothing, "in [0, 1)")
        require_seed(self.seed)
        for name in ("sample_tokens", "profile_steps"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "at least 0")
        _require_optional_count(self, "sample_every", "None to sample at the end only")
        self._require_dropout_schedule()
        self._require_extensions()
        self._require_freeze()

    def _require_tokenizer(self) -> None:
        allowed = "char, byte, gpt2, bpe, or a path of a tokenizer"
        is_name = isinstance(self.tokenizer, str | Path) and str(self.tokenizer) != ""
        _require(is_name, "tokenizer", self.tokenizer, allowed)
        object.__setattr__(self, "tokenizer", str(_as_path("tokenizer", self.tokenizer)))
        size, is_bpe = self.vocab_size, self.tokenizer == "bpe"
        allowed = "None unless tokenizer='bpe'. Set --tokenizer bpe, or --model.vocab-size"
        _require(size is None or is_bpe, "vocab_size", size, allowed)
        is_valid = size is None or 256 <= size <= 1 << 24
        _require(is_valid, "vocab_size", size, "from 256, the bytes, to 2^24, or None for 4096")

    def _require_dropout_schedule(self) -> None:
        schedule, steps = self.dropout_schedule, self.dropout_schedule_steps
        names = get_args(DropoutSchedule)
        _require(schedule in names, "dropout_schedule", schedule, f"one of {', '.join(names)}")
        _require_optional_count(self, "dropout_schedule_steps", "None to follow from steps")
        is_read = steps is None or schedule != "constant"
        allowed = "None with dropout_schedule='constant'. Set dropout_schedule too, such as early"
        _require(is_read, "dropout_schedule_steps", steps, allowed)

    def _require_extensions(self) -> None:
        extensions = tuple((step, steps) for step, steps in self.extended_from)
        object.__setattr__(self, "extended_from", extensions)
        ends, lengths = [step for step, _ in extensions], [steps for _, steps in extensions]
        ascends = all(numbers == sorted(set(numbers)) for numbers in (ends, [*lengths, self.steps]))
        is_valid = ascends and all(0 <= step <= steps for step, steps in extensions)
        _require(is_valid, "extended_from", extensions, "pairs (step, steps) in ascending order")

    def _require_freeze(self) -> None:
        """After the first N blocks something must be left to train."""
        is_enough = self.model.norm == "pre" and self.model.lora.rank is None  # the last norm
        most = self.model.n_layer if is_enough else self.model.n_layer - 1
        in_range = self.freeze is None or (type(self.freeze) is int and 0 <= self.freeze <= most)
        allowed = f"from 0 to {most}, so that something is trained, or None to train everything"
        _require(in_range, "freeze", self.freeze, allowed)

    def steps_at(self, step: int) -> int:
        """The number of steps that the run was to have when it made this step, from 0.

        >>> extended = Config(steps=4000, extended_from=((2000, 2000),))
        >>> extended.steps_at(1999), extended.steps_at(2000)
        (2000, 4000)
        """
        return next((steps for end, steps in self.extended_from if step < end), self.steps)


@dataclass(frozen=True)
class ClassifyConfig:
    """How a pretrained run becomes a classifier of texts."""

    pool: Literal["last", "first", "mean"] = "mean"
    """input of the head: features of the last or the first token, or their mean over the text"""
    head_dropout: float = 0.1
    """rate of the two dropout layers of the head"""
    dropout: float = 0.1
    """one rate for nanoGPT's four dropout sites in the body"""
    freeze: int | None = None
    """freeze the embeddings and the first N blocks; 0: the embeddings only; None: nothing"""
    class_weights: Literal["none", "balanced"] = "balanced"
    """balanced: weight the loss of each class by its inverse frequency"""
    unknown: Literal["error", "drop"] = "error"
    """characters that the run's tokenizer does not know: stop with an error, or drop them"""
    seed: int = 1337
    """seed of the CSV file's split, the head's weights, the batches and every dropout mask"""
    steps: int = 300
    """largest number of training steps; see patience"""
    batch_size: int = 32
    """texts per step"""
    eval_every: int = 50
    """steps between evaluations on the validation part; the best parameters are kept"""
    patience: int | None = 4
    """stop after this many evaluations without a better macro-F1; None: train to the last step"""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(1e-3, warmup_steps=30))

    def __post_init__(self) -> None:
        _require_types(self)
        _require_counts(self, "steps", "batch_size", "eval_every")
        for name in ("head_dropout", "dropout"):
            _require_rate(name, getattr(self, name))
        is_count = self.freeze is None or self.freeze >= 0
        _require(is_count, "freeze", self.freeze, "a number of blocks, or None to train all")
        _require_optional_count(self, "patience", "None to train to the last step")
        require_seed(self.seed)


def _shakespeare_char() -> Config:
    dropout = DropoutConfig.uniform(0.2)
    model = ModelConfig(6, 6, 384, 256, activation="gelu", dropout=dropout)
    return Config(steps=5000, batch_size=64, eval_batches=4, model=model)


def _gpt2() -> Config:
    dropout = DropoutConfig.uniform(0.1)
    model = ModelConfig(12, 12, 768, 1024, bias=True, vocab_size=50257, dropout=dropout)
    optim = OptimConfig(6e-4, warmup_steps=2000, beta2=0.95)
    return Config(
        steps=600_000, batch_size=12, eval_every=1000, tokenizer="gpt2", model=model, optim=optim
    )


PresetName = Literal["shakespeare-char-cpu", "shakespeare-char", "gpt2"]

# The first two are nanoGPT's: the command for a CPU in its README, and
# config/train_shakespeare_char.py. Only the number of batches of a validation differs in the second
# (4, spread evenly; there 200 random ones). The third is GPT-2's 124M model with its dropout
# (Radford et al., 2019) and the optimizer of nanoGPT's config/train_gpt2.py, for one GPU: with
# `--batch-size 480 --accumulate 40` a step has that file's number of tokens, 40 times as many.
PRESETS: dict[PresetName, Config] = {
    "shakespeare-char-cpu": Config(model=ModelConfig(activation="gelu")),
    "shakespeare-char": _shakespeare_char(),
    "gpt2": _gpt2(),
}
