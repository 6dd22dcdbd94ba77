"""Many devices and many processes: the mesh, sharding, and agreement between processes."""

from minigpt.distributed.collectives import COLLECTIVES, count_collectives
from minigpt.distributed.mesh import (
    MeshFunction,
    abstract_batch,
    abstract_state,
    constrain_batch_sharding,
    constrain_replicated,
    fit_mesh,
    make_mesh,
    parse_mesh_spec,
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
from minigpt.distributed.topology import (
    MissingCompilerError,
    Topology,
    describe_topology,
    parse_topology,
)
