"""A run directory: what it says of its run, whether the run may start, its parent, its metrics."""

from minigpt.run.directory import CONFIG, RunSpec, create_new_dir
from minigpt.run.metrics import MetricsLog, read_metrics
from minigpt.run.open import OpenRun, differences, open_run
from minigpt.run.parent import parent_dir, parent_tokenizer, restore_parent_copy
