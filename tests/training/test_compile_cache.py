"""Compiled programs are kept in the user's cache, unless JAX is told otherwise."""

import jax
import pytest

from wsi_jax.training import compile_cache
from wsi_jax.training.compile_cache import keep_compiled, processor

NAMES = (
    "jax_compilation_cache_dir",
    "jax_enable_compilation_cache",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """JAX as a new process has it, and a cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = {name: getattr(jax.config, name) for name in NAMES}
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", True)
    yield tmp_path / "wsi_jax" / "compiled"
    for name, value in before.items():
        jax.config.update(name, value)


def test_they_are_kept_in_the_users_cache(unset):
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == str(unset / processor())


@pytest.mark.usefixtures("unset")
def test_settings_of_jax_come_first():
    jax.config.update("jax_enable_compilation_cache", False)
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir is None
    jax.config.update("jax_enable_compilation_cache", True)
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    keep_compiled()
    assert jax.config.jax_compilation_cache_dir == "elsewhere"


def test_each_kind_of_processor_has_a_folder_of_its_own(monkeypatch, tmp_path):
    kinds = set()
    for flags in ("sse avx", "sse avx avx512f"):
        monkeypatch.setattr(compile_cache, "CPU_INFO", tmp_path / "cpuinfo")
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
        kinds.add(processor())
    assert len(kinds) == 2
