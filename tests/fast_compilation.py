"""XLA's flags for tests: compiling is most of their time, and small programs need no tuning."""

import importlib.metadata
import os


def xla_flags() -> str:
    """Return the flags; `make test` asks for XLA's older code generator too.

    jaxlib 0.11 has only the newer one, and ends the process for a flag that it does not know. One
    module a program: the pieces that XLA would compile in parallel cost more than they save.
    """
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    flags += " --xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1"
    jaxlib = importlib.metadata.version("jaxlib").split(".")
    is_older = (int(jaxlib[0]), int(jaxlib[1])) < (0, 11)
    if os.environ.get("OLDER_CODE_GENERATOR") and is_older:
        flags += " --xla_cpu_use_fusion_emitters=false"
    return flags
