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
    """Whether this is a folder with a config.json or a GGUF file and no run, or a name of the hub.

    A GGUF file may be named itself.

    A name of the hub is OWNER/MODEL, where OWNER is not a folder here.
    """
    path = Path(path)
    if path.exists():
        is_model = (path / "config.json").is_file() or find_gguf(path) is not None
        return is_model and not (path / CONFIG).exists()
    return _NAME.fullmatch(path.as_posix()) is not None and not path.parent.exists()


def find_gguf(path: Path) -> Path | None:
    """A GGUF file: the path itself, or the only one in a folder that has no config.json.

    Raises:
      ValueError: the folder has several.
    """
    if path.suffix == ".gguf" and path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise ValueError(
            f"{str(path)!r} has {len(files)} GGUF files: name one of them, such as "
            f"{str(files[0])!r}."
        )
    return files[0] if files else None


def find_model_folder(path: Path | str) -> Path:
    """The folder or file itself, or the folder to which the hub's model is downloaded.

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
