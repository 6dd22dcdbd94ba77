"""What a run directory says of its run: config.toml and the tokenizer's alphabet."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import tomli_w

from minigpt.config import Config, DropoutConfig, ModelConfig, OptimConfig
from minigpt.tokenizer import Tokenizer

CONFIG, TOKENIZER = "config.toml", "tokenizer.json"


class Run(NamedTuple):
    """A resolved config and the tokenizer that its text gave."""

    config: Config
    tokenizer: Tokenizer

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
        """Write both files into a directory that holds no run yet."""
        if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
            raise ValueError(
                f"run_dir={str(run_dir)!r} is not allowed: it must be new or an empty folder, so "
                "that nothing is overwritten. Choose another --run-dir, or remove it."
            )
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / CONFIG).write_text(tomli_w.dumps(_plain(self.config)), encoding="utf-8")
        alphabet = json.dumps({"alphabet": self.tokenizer.alphabet})
        (run_dir / TOKENIZER).write_text(alphabet, encoding="utf-8")

    @classmethod
    def load(cls, run_dir: Path) -> Run:
        """Read a run directory."""
        try:
            tables = tomllib.loads((run_dir / CONFIG).read_text(encoding="utf-8"))
            alphabet = json.loads((run_dir / TOKENIZER).read_text(encoding="utf-8"))["alphabet"]
            return cls(_config_of(tables), Tokenizer(alphabet))
        except OSError as error:
            raise ValueError(
                f"{str(run_dir)!r} is no run directory: {error.filename} cannot be read."
            ) from None
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"{str(run_dir)!r} is no run of this version: {CONFIG} or {TOKENIZER}: {error}."
            ) from None


def _config_of(tables: dict[str, Any]) -> Config:
    model = tables.pop("model")
    dropout, optim = DropoutConfig(**model.pop("dropout")), OptimConfig(**tables.pop("optim"))
    for name in ("data", "run_dir"):
        tables[name] = Path(tables[name]) if name in tables else None
    return Config(**tables, model=ModelConfig(**model, dropout=dropout), optim=optim)


def first_free(parent: Path, name: str) -> Path:
    """parent/name, or the first of name-2, name-3, ... that does not exist."""
    paths = (parent / (f"{name}-{n}" if n > 1 else name) for n in itertools.count(1))
    return next(path for path in paths if not path.exists())


def _plain(config: Any) -> dict[str, Any]:
    """A dataclass as TOML can hold it: no None, paths as strings."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items() if item is not None}
        return str(value) if isinstance(value, Path) else value

    return plain(dataclasses.asdict(config))
