"""Plots of a run."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from minigpt.atomic_write import write_atomic


def plot_losses(records: list[dict[str, Any]], path: Path, title: str) -> None:
    """Plot the training loss by step, and the losses of the validations with their gap."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    steps = [record["step"] for record in records]
    axes.plot(steps, [r["train_loss"] for r in records], color="0.75", lw=0.8, label="batch loss")
    validations = [record for record in records if "val_loss" in record]
    steps = [record["step"] for record in validations]
    train = [record["train_eval_loss"] for record in validations]
    validation = [record["val_loss"] for record in validations]
    axes.plot(steps, train, "o-", color="tab:blue", ms=3, label="training text, dropout off")
    axes.plot(steps, validation, "o-", color="tab:red", ms=3, label="validation text")
    axes.fill_between(steps, train, validation, color="tab:red", alpha=0.12, label="gap")
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=title)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    png = io.BytesIO()
    figure.savefig(png, dpi=120, format="png")
    write_atomic(path, png.getvalue())
