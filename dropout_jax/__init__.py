"""Every kind of dropout as a pure function of an explicit key."""

from dropout_jax._apply import apply_mask
from dropout_jax.attention import attention_implementation, dot_product_attention, dropkey_bias
from dropout_jax.elementwise import (
    alpha_dropout,
    dropout,
    dropout_unscaled,
    gaussian_dropout,
    masked_dropout,
)
from dropout_jax.learned import (
    concrete_dropout,
    concrete_dropout_penalty,
    variational_dropout,
    variational_dropout_kl,
)
from dropout_jax.passes import multi_sample_dropout, r_drop_divergence
from dropout_jax.paths import drop_connect, drop_path, layer_drop, zoneout
from dropout_jax.random import fold, keep_mask
from dropout_jax.schedules import curriculum_dropout, early_dropout, late_dropout, linear_over_depth
from dropout_jax.structured import (
    drop_block,
    embedding_dropout,
    head_dropout,
    locked_dropout,
    spatial_dropout,
    token_dropout,
)
from dropout_jax.uncertainty import (
    auroc,
    brier_score,
    expected_calibration_error,
    expected_entropy,
    fit_temperature,
    mc_dropout,
    mutual_information,
    negative_log_likelihood,
    predictive_entropy,
    predictive_mean_and_std,
    variation_ratio,
)

__all__ = [
    "alpha_dropout",
    "apply_mask",
    "attention_implementation",
    "auroc",
    "brier_score",
    "concrete_dropout",
    "concrete_dropout_penalty",
    "curriculum_dropout",
    "dot_product_attention",
    "drop_block",
    "drop_connect",
    "drop_path",
    "dropkey_bias",
    "dropout",
    "dropout_unscaled",
    "early_dropout",
    "embedding_dropout",
    "expected_calibration_error",
    "expected_entropy",
    "fit_temperature",
    "fold",
    "gaussian_dropout",
    "head_dropout",
    "keep_mask",
    "late_dropout",
    "layer_drop",
    "linear_over_depth",
    "locked_dropout",
    "masked_dropout",
    "mc_dropout",
    "multi_sample_dropout",
    "mutual_information",
    "negative_log_likelihood",
    "predictive_entropy",
    "predictive_mean_and_std",
    "r_drop_divergence",
    "spatial_dropout",
    "token_dropout",
    "variation_ratio",
    "variational_dropout",
    "variational_dropout_kl",
    "zoneout",
]

__version__ = "0.1.0"
