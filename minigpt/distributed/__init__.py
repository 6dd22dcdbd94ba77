"""Many devices and many processes: the mesh, sharding, and agreement between processes."""

from minigpt.distributed.mesh import (
    constrain_batch_sharding,
    make_mesh,
    replicated,
    shard_batch,
    shard_state,
    state_shardings,
    use_mesh,
)
from minigpt.distributed.multihost import (
    any_process,
    barrier,
    initialize_distributed,
    is_main_process,
    is_single_process,
    require_equal,
)
