"""The run directory: its settings and tokenizer, opening it for training, its parent,
its copies of streams, metrics."""

from minigpt.run.directory import CONFIG, RunSpec, create_new_dir
from minigpt.run.extend import with_extensions
from minigpt.run.metrics import MetricsLog, read_metrics
from minigpt.run.open import (
    LOCK,
    OpenRun,
    RunDirInUseError,
    differences,
    lock_run_dir,
    open_run,
)
from minigpt.run.parent import kept_chat_template, kept_tokenizer, parent_dir
from minigpt.run.streams import find_kept_streams, has_same_data, read_streams
from minigpt.run.weights import (
    FROZEN_SHA256,
    add_frozen,
    checkpoint_like,
    frozen_sha256,
    restore_parent_copy,
    restore_run,
)
