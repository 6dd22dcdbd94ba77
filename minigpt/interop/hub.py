"""Find the folder of a Hugging Face model: a local one, or one of the hub, downloaded."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from minigpt.run import CONFIG

# The weights of PyTorch, TensorFlow and Flax in other files are not downloaded.
FILES = (
    *("config.json", "model.safetensors", "model.safetensors.index.json", "model-*.safetensors"),
    *("tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"),
    *("chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json"),
)
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_huggingface_model(path: Path | str) -> bool:
    """Whether this is a local folder with a config.json and no run, or a name of the hub.

    A name of the hub is OWNER/MODEL, where OWNER is not a folder here.
    """
    path = Path(path)
    if path.exists():
        return (path / "config.json").is_file() and not (path / CONFIG).exists()
    return _NAME.fullmatch(path.as_posix()) is not None and not path.parent.exists()


def find_model_folder(path: Path | str) -> Path:
    """The folder itself, or the folder to which the hub's model of this name is downloaded.

    Raises:
      ValueError: there is no such folder, and the model cannot be downloaded.
    """
    path = Path(path)
    if path.exists() or not is_huggingface_model(path):
        return path
    try:
        hub: Any = importlib.import_module("huggingface_hub")
    except ModuleNotFoundError:
        raise ValueError(
            f"{str(path)!r} is not a folder, and the hub's model of this name cannot be "
            "downloaded: huggingface_hub is not installed. Install it: pip install "
            "huggingface_hub. Or name a folder."
        ) from None
    try:
        return Path(hub.snapshot_download(path.as_posix(), allow_patterns=list(FILES)))
    except Exception as error:  # of the network, the hub or the disk, of many libraries
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{str(path)!r} is not a folder, and the hub's model of this name cannot be "
            f"downloaded: {type(error).__name__}: {reason:.300}. Name a folder, or try again with "
            "a network."
        ) from None
