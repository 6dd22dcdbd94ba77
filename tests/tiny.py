"""A GPT, a text and labelled texts small enough for tests."""

import dataclasses
from typing import Any

import numpy as np

from minigpt.checkpoint import manager as checkpoint
from minigpt.config import Config, DropoutConfig, ModelConfig, OptimConfig
from minigpt.run import metrics
from minigpt.tasks.classification.data import LabelledSplit, LabelledTexts

TIMED = ("tokens_per_s", "elapsed_s")
SITES = [name for name in DropoutConfig().rates if name != "lora"]  # of a model without LoRA
TEXT = "To be, or not to be, that is the question:\nWhether 'tis nobler in the mind\n" * 20
MODEL = ModelConfig(n_layer=2, n_head=2, n_embd=8, block_size=32)
# The parts of Llama, with an output layer of its own.
LLAMA = dataclasses.replace(
    MODEL,
    **{"n_head": 4, "n_kv_head": 2, "n_embd": 16, "n_inner": 24, "activation": "swiglu"},
    **{"norm_type": "rmsnorm", "positions": "rotary", "rope_theta": 100.0, "tied_head": False},
)
CONFIG = Config(
    steps=4,
    batch_size=3,
    log_every=2,
    eval_every=2,
    eval_batches=2,
    sample_tokens=3,
    model=MODEL,
    optim=OptimConfig(warmup_steps=2),
)


def with_dropout(model: ModelConfig = MODEL, /, **rates: Any) -> ModelConfig:
    return dataclasses.replace(model, dropout=DropoutConfig(**rates))


def outcome(folder):
    """Everything that the run in folder/out leaves, but for times."""
    run_dir = folder / "out"
    steps = checkpoint.list_steps(run_dir)
    arrays, _ = checkpoint.read(run_dir, steps[-1])
    arrays = {name: (array.tobytes(), array.shape) for name, array in arrays.items()}
    records = [
        {name: value for name, value in record.items() if name not in TIMED}
        for record in metrics.read_metrics(run_dir)
    ]
    names = {path.name for path in run_dir.iterdir()}
    return arrays, records, steps, names


def texts(count):
    """Texts of a and c, and texts of b and c."""
    random = np.random.default_rng(count)
    labels = ["with a" if i % 2 else "with b" for i in range(count)]
    letters = [random.choice([label[-1], "c"], 5 + i % 9) for i, label in enumerate(labels)]
    return LabelledTexts(
        [label[-1] + "".join(some) for label, some in zip(labels, letters, strict=True)], labels
    )


DATA = LabelledSplit(texts(48), texts(20), texts(24))
