"""Settings of every test: forced CPU devices, strict dtype promotion, checked types and shapes."""

import ctypes
import gc
import os
import pathlib
import resource

from fast_compilation import xla_flags

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {xla_flags()}"

import jax
import jaxtyping
import pytest
from hypothesis import settings
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from type_checking import install_type_checker

# Wherever shapes are written.
for package in ("dropout_jax", "minigpt.model", "minigpt.tasks.classification.model"):
    install_type_checker(package)

ROOT = pathlib.Path(__file__).parent.parent
MOST_RESIDENT_BYTES = 4 * 2**30

# Every example compiles a program of its own shape, so time says nothing and examples are few.
settings.register_profile("default", deadline=None, max_examples=40, derandomize=True)
settings.load_profile("default")


@pytest.fixture
def promotion():
    """JAX's dtype promotion in a test; the conftest.py of a folder may override it."""
    return "strict"


@pytest.fixture(autouse=True)
def dtype_promotion(promotion):
    """Strict: no implicit dtype promotion, except where optax runs, which relies on it."""
    with jax.numpy_dtype_promotion(promotion):
        yield


@pytest.fixture
def without_type_checker():
    """Let a test pass arguments that the annotations forbid, to see our own error messages."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True, scope="session")
def cache_of_tokens(tmp_path_factory):
    """Large texts' ids, of this process and of those it starts, stay out of the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIGPT_CACHE", str(tmp_path_factory.mktemp("cache") / "ids"))
        yield


@pytest.fixture(autouse=True, scope="session")
def full_precision_on_a_gpu():
    """There JAX multiplies float32 in TF32; the tests' bounds are those of float32."""
    if jax.default_backend() == "gpu":
        jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture(autouse=True, scope="session")
def compilation_cache():
    """Compiled programs are kept in .jax_cache, for all workers, their children and later runs."""
    wanted = {
        "jax_compilation_cache_dir": str(ROOT / ".jax_cache"),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in wanted.items():
            patch.setenv(name.upper(), str(value))
            jax.config.update(name, value)
        reset_cache()
        yield


@pytest.fixture(autouse=True)
def bounded_memory():
    """Let go of compiled programs when they take gigabytes: two processes share the machine."""
    yield
    if _resident_bytes() > MOST_RESIDENT_BYTES:
        jax.clear_caches()
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _resident_bytes():
    """Return the memory of this process on Linux; elsewhere 0."""
    status = pathlib.Path("/proc/self/statm")
    pages = int(status.read_text().split()[1]) if status.exists() else 0
    return pages * resource.getpagesize()


@pytest.fixture
def key():
    return jax.random.key(20141)
