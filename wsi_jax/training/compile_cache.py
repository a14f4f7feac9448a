"""What XLA has compiled, kept on disk for the next process."""

import hashlib
import os
import pathlib
import platform

import jax

CPU_INFO = pathlib.Path("/proc/cpuinfo")


def keep_compiled(folder: str | os.PathLike | None = None) -> None:
    """Keeps compiled programs on disk: the next process need not compile them.

    JAX's own settings come first: JAX_COMPILATION_CACHE_DIR names another folder, and
    JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.

    Args:
        folder: where; None for wsi_jax/compiled in the user's cache folder. It may be
            deleted at any time.
    """
    if (
        jax.config.jax_compilation_cache_dir
        or not jax.config.jax_enable_compilation_cache
    ):
        return
    if folder is None:
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = pathlib.Path(cache).expanduser() / "wsi_jax" / "compiled" / processor()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def processor() -> str:
    """8 hex digits of this machine's kind of processor.

    Programs for a CPU use what it can do: in a home folder that several machines share,
    each kind has a cache of its own.
    """
    flags = ""
    if CPU_INFO.is_file():
        lines = CPU_INFO.read_text().splitlines()
        flags = next((line for line in lines if line.startswith(("flags", "Feat"))), "")
    kind = f"{platform.machine()} {platform.system()} {flags}"
    return hashlib.sha256(kind.encode()).hexdigest()[:8]
