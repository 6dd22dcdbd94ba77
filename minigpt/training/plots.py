"""Pictures of a run."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure

from minigpt.atomic_write import write_atomic


def plot_losses(records: list[dict], path: Path, title: str) -> None:
    """Draw the training loss by step, and the validations with the gap between the two texts."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = [record["step"] for record in records]
    axes.plot(steps, [r["train_loss"] for r in records], color="0.75", lw=0.8, label="batch loss")
    seen = [record for record in records if "val_loss" in record]
    at = [record["step"] for record in seen]
    train, validation = ([r[name] for r in seen] for name in ("train_eval_loss", "val_loss"))
    axes.plot(at, train, "o-", color="tab:blue", ms=3, label="training text, dropout off")
    axes.plot(at, validation, "o-", color="tab:red", ms=3, label="validation text")
    axes.fill_between(at, train, validation, color="tab:red", alpha=0.12, label="gap")
    axes.set(xlabel="step", ylabel="loss (nats a token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    png = io.BytesIO()
    figure.savefig(png, dpi=120, format="png")
    write_atomic(path, png.getvalue())
