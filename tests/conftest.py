"""Strictness in one place: eight devices, no silent broadcasting, no reused keys.

What XLA compiles is kept in JAX_COMPILATION_CACHE_DIR (by default in the user's cache),
for the other process of the same run and for the next run.
"""

import os
import pathlib

import jax
import pytest
from object_store import serve

jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)
# Compiling is most of what the tests cost, and laws hold at any optimisation and with
# the older code generator, which compiles three times faster. XLA ends the process at a
# flag that it does not know: later versions have one generator alone.
OLDER = "--xla_cpu_use_fusion_emitters=false"
if jax.__version__.startswith("0.10."):
    os.environ["XLA_FLAGS"] = f"{OLDER} {os.environ.get('XLA_FLAGS', '')}".strip()
jax.config.update("jax_disable_most_optimizations", True)
# By default JAX keeps only what took a second to compile: here that is hardly anything.
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "wsi_jax/tests"
if not jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", str(CACHE.expanduser()))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real slides and reference numbers, named by WSI_JAX_SHARED."""
    folder = pathlib.Path(os.environ.get("WSI_JAX_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        message = f"{folder} is absent; set WSI_JAX_SHARED to the shared test material"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture
def x64():
    """float64 within one test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def optimised():
    """XLA's full optimisation within one test, for laws about what it compiles."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    """An object store on this machine, gs://bucket-PORT."""
    with serve(tmp_path_factory.mktemp("store")) as bucket:
        yield bucket
