"""Every kind of dropout as a function of an array, a rate and a key.

`dropout_jax` re-exports the ops. The names from `_apply`, except `apply_mask`, are for the other
wings.
"""

from dropout_jax.ops._apply import (
    apply_mask,
    compute_dtype,
    compute_keep_scale,
    keeps_everything,
    nan_if_invalid_rate,
    nan_unless,
    scale_array,
    select_unscaled,
    widen,
    with_mask,
    with_replicated_result,
    with_shardings_of,
    with_type_of,
)
from dropout_jax.ops._elementwise import (
    alpha_dropout,
    dropout,
    dropout_unscaled,
    gaussian_dropout,
    masked_dropout,
)
from dropout_jax.ops._learned import (
    concrete_dropout,
    concrete_dropout_penalty,
    variational_dropout,
    variational_dropout_kl,
)
from dropout_jax.ops._multi_pass import multi_sample_dropout, r_drop_divergence
from dropout_jax.ops._paths import drop_connect, drop_path, layer_drop, zoneout
from dropout_jax.ops._structured import (
    drop_block,
    embedding_dropout,
    head_dropout,
    locked_dropout,
    spatial_dropout,
    token_dropout,
)
