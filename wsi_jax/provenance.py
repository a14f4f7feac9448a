"""What a result was made with: commit, date, machine, versions; a hash of settings."""

import dataclasses
import datetime
import enum
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax
import numpy as np

from wsi_jax import __version__

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"),
    *("tensorflow-cpu", "tensorflow", "openslide-python", "openslide-bin", "tifffile"),
)


def provenance() -> dict:
    """{"commit", "date", "machine", "versions"} of this process."""
    return {
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
    }


def commit() -> str:
    """Hash of this checkout's commit, "-changed" where files differ from it; "unknown"
    outside git."""
    git = ["git", "-C", str(pathlib.Path(__file__).parent)]
    run = {"capture_output": True, "text": True, "check": True}
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], **run).stdout.strip()
        changed = subprocess.run([*git, "status", "--porcelain"], **run).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{head}-changed" if changed else head


@functools.cache
def code() -> dict[str, str]:
    """Versions that must be equal for two processes to make the same features.

    {"jax": its version, "wsi_jax": hash of its files}, for checkouts have one version.
    """
    folder, digest = pathlib.Path(__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".toml"):
            digest.update(f"{path.relative_to(folder).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return {"jax": jax.__version__, "wsi_jax": digest.hexdigest()[:16]}


def machine() -> dict:
    """Devices, processor, cores, memory, system; no name of a host."""
    device = jax.devices()[0]
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "device": device.device_kind,
        "platform": device.platform,
        "devices": jax.device_count(),
        "cpu": _cpu(),
        "cores": cores(),
        "memory_gib": round(pages / 2**30, 1),
        "system": platform.platform(terse=True),
    }


def cores() -> int:
    """Number of cores this process may use; all cores where the system does not say."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of Python, of packages that results depend on, and of JAX's backend."""
    installed = {"python": platform.python_version(), "wsi_jax": __version__}
    for name in PACKAGES:
        try:
            installed[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    backend = jax.devices()[0].client.platform_version
    return installed | {"backend": " ".join(backend.split())}


def _cpu() -> str:
    lines = pathlib.Path("/proc/cpuinfo")
    if lines.exists():
        for line in lines.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def config_hash(*settings: Any) -> str:
    """16 hex digits that change when any setting does.

    Args:
        settings: dataclasses, enums, or anything JSON can write.
    """
    plain = [
        dataclasses.asdict(s) if dataclasses.is_dataclass(s) else s for s in settings
    ]
    text = json.dumps(plain, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value):
    if isinstance(value, enum.Enum):
        return value.name
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a setting of type {type(value).__name__} cannot be hashed")
