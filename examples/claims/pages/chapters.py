"""The chapters, the scripts of each in the order of the pages, and the results that they wrote."""

import json
from pathlib import Path

APPLICATIONS = "applications"

# A chapter is a folder of examples/claims, but the applications are scripts of examples/ itself.
CHAPTERS: dict[str, list[str]] = {
    "mechanism": [
        *("scaling", "randomness", "missing_scale", "unscaled_softmax", "evaluation_mode"),
        *("forgotten_evaluation", "geometric_mean", "sub_networks", "monte_carlo_samples"),
        *("co_adaptation", "feature_correlation"),
    ],
    "learning": [
        *("data_size", "gpt_overfitting", "underfitting", "gpt_rates", "image_rates", "placement"),
        *("interactions", "variance_shift", "batch_norm", "schedules", "cost", "step_time"),
    ],
    "blocks": ["block_shapes", "norm_order", "features"],
    "variants": [
        *("convolution", "feature_maps", "selu_moments", "selu", "recurrent", "zoneout"),
        *("drop_connect", "drop_path", "removed_blocks", "learned_rates", "learned_against_fixed"),
        "r_drop",
    ],
    "finetuning": ["genre", "genre_head_rates", "genre_body_rates"],
    "uncertainty": [
        *("uncertainty", "out_of_distribution", "active_learning", "genre_uncertainty"),
        *("gpt_uncertainty", "gpt_other_texts"),
    ],
    APPLICATIONS: ["seq2seq", "encoder_masked_lm", "vision", "recurrent_lm"],
}

TITLES = {
    "mechanism": "The mechanism",
    "learning": "Effects on learning",
    "blocks": "In a stack of blocks",
    "variants": "Variants in their architectures",
    "finetuning": "Fine-tuning",
    "uncertainty": "Uncertainty",
    APPLICATIONS: "Applications",
}

FILES = {"recurrent_lm": "recurrent"}  # the scripts whose result has another name


def chapter_of(name: str) -> str:
    """The chapter of a result."""
    return next(chapter for chapter, names in CHAPTERS.items() if name in names)


def script_path(name: str) -> str:
    """The path in examples/ of the script that writes a result."""
    file, chapter = f"{FILES.get(name, name)}.py", chapter_of(name)
    return file if chapter == APPLICATIONS else f"claims/{chapter}/{file}"


def load_results(folder: Path) -> dict[str, dict]:
    """The results in the order of the pages; an application without a result is left out."""
    paths = {
        name: folder / f"{name}.json"
        for chapter, names in CHAPTERS.items()
        for name in names
        if chapter != APPLICATIONS or (folder / f"{name}.json").exists()
    }
    return {name: json.loads(path.read_text()) for name, path in paths.items()}
