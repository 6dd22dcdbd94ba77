"""A small GPT in flax.nnx with dropout at every site, and its trainer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from minigpt.config import Checkpoint, Config
    from minigpt.tasks.inference import LoadedModel
    from minigpt.training import TrainedRun


def train(
    config: Config,
    *,
    resume: Literal["auto", "never"] = "auto",
    extend: bool = False,
    quiet: bool = False,
) -> TrainedRun:
    """Train a GPT, or resume its training, as `minigpt train` does.

    The run is written to config.run_dir; None is an unfinished run with the same settings in the
    folder runs, or a new folder there. The same call resumes a run that was stopped, exactly.

    Args:
      config: the settings of the run; `minigpt.config.PRESETS` has some. Paths may be strings.
      resume: "never" refuses a config.run_dir that contains a run, and never resumes another.
      extend: go on with the run in config.run_dir to config.steps, more than it had, with the same
        optimizer state and the schedules of the new length. A run that has this many steps already
        is resumed.
      quiet: print nothing.

    Returns:
      The run directory, the records of its metrics.jsonl (losses in nats per token), and whether
      the run is finished: Ctrl-C stops it without loss.

    Raises:
      ValueError: a setting, the text or the directory is not allowed; NaN or infinity in training.
      OSError: a file cannot be read or written.

    Example:
      >>> import tempfile, minigpt
      >>> from minigpt.config import Config, ModelConfig
      >>> folder = tempfile.mkdtemp()
      >>> with open(f"{folder}/text.txt", "w") as file:
      ...     _ = file.write("To be, or not to be, that is the question.\\n" * 20)
      >>> model = ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=16)
      >>> config = Config(data=f"{folder}/text.txt", run_dir=f"{folder}/run", steps=4, model=model)
      >>> run = minigpt.train(config, quiet=True)
      >>> run.run_dir.name, run.is_finished, run.records[-1]["step"]
      ('run', True, 4)
    """
    from rich.console import Console

    from minigpt.config import Config
    from minigpt.training import start_training

    if not isinstance(config, Config):
        allowed = "a minigpt.config.Config, such as Config(steps=100)"
        raise TypeError(f"config={config!r:.200} is not allowed: it must be {allowed}.")
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True, quiet=quiet)
    name = f"{config.parent.name}-finetuned" if config.parent else "minigpt"
    return start_training(config, name=name, resume=resume, extend=extend, console=console)


def load(run_dir: str | Path, checkpoint: Checkpoint | None = None) -> LoadedModel:
    """Load a trained model from a run directory, or a GPT-2 or Llama in the format of Hugging Face.

    A folder with a config.json and a model.safetensors, the name of such a model on the hub
    (OWNER/MODEL), or a GGUF file is read without a run directory: see docs/huggingface.md. For run
    directories see `minigpt.tasks.inference.load`.
    """
    from minigpt.interop import is_huggingface_model, read_huggingface
    from minigpt.tasks import inference  # here, so that `import minigpt` does not import JAX

    if not is_huggingface_model(run_dir):
        return inference.load(run_dir, checkpoint)
    if checkpoint not in (None, "last", "best", 0):
        raise ValueError(
            f"checkpoint={checkpoint!r} is not allowed: {str(run_dir)!r} is a Hugging Face model, "
            "which has one checkpoint. Leave it out."
        )
    return inference.load_parameters(*read_huggingface(run_dir))
