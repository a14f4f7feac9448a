"""What this machine has and lacks: versions, devices, formats, speed, memory, disk."""

import glob
import os
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from wsi_jax import provenance
from wsi_jax.slides import sample_tiff
from wsi_jax.slides.open_reader import open_reader
from wsi_jax.slides.slide import open_slide

MEND = "mend: "  # begins each line that asks for something
CUDA_DRIVERS = {"cuda13": 580, "cuda12": 525}  # oldest driver of each
TENSORFLOW = {"tensorflow", "tensorflow-cpu"}  # either will do
SIDE_PX = 4096
OPENSLIDE = "SVS, NDPI, VMS, SCN, MRXS, Philips TIFF, BIF, SVSLIDE, Trestle, DICOM"


def examine() -> Iterator[str]:
    """Lines of text, each as soon as it is known; what to mend begins with MEND."""
    yield from versions()
    yield from devices()
    yield from host()
    yield from formats()
    yield speed()


def versions() -> Iterator[str]:
    """Python, the packages that results depend on, and what is missing of them."""
    installed = provenance.versions()
    yield "versions"
    for name, version in installed.items():
        yield f"  {name:<18} {version}"
    yield from missing(installed)


def missing(installed: Mapping[str, str]) -> Iterator[str]:
    """How packages that results depend on come to be installed."""
    for name in provenance.PACKAGES:
        names = {name} if "tensorflow" not in name else TENSORFLOW
        if name != "tensorflow" and not names & {*installed}:
            yield f"{MEND}{name} is not installed: pip install {name}"


def devices() -> Iterator[str]:
    """What JAX computes on, and what it does not see of what the system has."""
    yield "devices that JAX sees"
    for device in jax.local_devices():
        memory = (device.memory_stats() or {}).get("bytes_limit")
        size = f", {memory / 2**30:.1f} GiB" if memory else ""
        yield f"  {device.platform} {device.id}: {device.device_kind}{size}"
    platforms = {device.platform for device in jax.local_devices()}
    if not platforms - {"cpu"}:
        yield from unseen_devices(nvidia_gpus(), tpus())


def nvidia_gpus() -> list[tuple[str, str]]:
    """(name, version of the driver) of each GPU of which nvidia-smi tells both."""
    command = shutil.which("nvidia-smi")
    if not command:
        return []
    query = [command, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    rows = [line.split(", ") for line in done.stdout.splitlines()]
    gpus = [row for row in rows if len(row) == 2 and row[1][:1].isdigit()]
    return [(name, driver) for name, driver in gpus if done.returncode == 0]


def tpus() -> list[str]:
    """Device files of TPUs."""
    return sorted(glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*"))


def unseen_devices(gpus: list[tuple[str, str]], tpus: list[str]) -> Iterator[str]:
    """How JAX comes to see accelerators of this machine, where it sees none.

    Args:
        gpus: as `nvidia_gpus` gives them.
        tpus: as `tpus` gives them.
    """
    if (gpus or tpus) and (chosen := os.environ.get("JAX_PLATFORMS")):
        yield f"{MEND}JAX_PLATFORMS={chosen} hides other devices: unset it"
        return
    if gpus:
        name, driver = gpus[0]
        major = int(driver.partition(".")[0])
        fitting = [extra for extra, oldest in CUDA_DRIVERS.items() if major >= oldest]
        has = f"the system has {len(gpus)} x {name} (driver {driver}), JAX sees none"
        if not fitting:
            yield f"{MEND}{has}: update the driver to {CUDA_DRIVERS['cuda12']} or newer"
        else:
            yield f"{MEND}{has}: {_pip(fitting[0])}"
    elif tpus:
        yield f"{MEND}the system has {', '.join(tpus)}, JAX sees no TPU: {_pip('tpu')}"


def _pip(extra: str) -> str:
    return f'pip install "jax[{extra}]=={jax.__version__}"'


def host() -> Iterator[str]:
    """Cores, memory and the disk of this folder."""
    machine = provenance.machine()
    free = shutil.disk_usage(".").free / 2**30
    yield "machine"
    yield f"  {machine['cores']} cores of {machine['cpu']}"
    yield f"  {machine['memory_gib']:.1f} GiB of memory"
    yield f"  {free:,.1f} GiB free on the disk of {os.getcwd()}"
    if free < 1:
        yield f"{MEND}less than 1 GiB is free: features of a cohort take more"


def formats() -> Iterator[str]:
    """By which reader a small TIFF of each compression is read here."""
    yield f"formats\n  OpenSlide {_openslide()}: {OPENSLIDE}"
    pixels, readers = sample_tiff.sample_pixels(512), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in sample_tiff.COMPRESSIONS:
            path = pathlib.Path(folder) / f"{name}.tif"
            try:
                sample_tiff.write_sample(path, pixels, name)
                reader = type(open_reader(str(path))).__name__.removesuffix("Reader")
                with open_slide(path) as slide:
                    read = slide.read((0, 0), 512, sample_tiff.MPP).astype(int)
                same = np.abs(read - pixels).mean() < 8
                readers[name] = f"by {reader}" if same else "read wrongly"
            except Exception as error:  # a codec that is missing raises what it likes
                readers[name] = f"not read ({type(error).__name__})"
    yield "  tiled TIFF, by compression"
    for name, reader in readers.items():
        yield f"    {name:<20} {reader}"
        if not reader.startswith("by"):
            yield f"{MEND}{name}: {reader}; pip install -U openslide-bin imagecodecs"


def _openslide() -> str:
    installed = provenance.versions()
    return installed.get("openslide-bin") or installed.get("openslide-python", "")


def speed() -> str:
    """How fast tiles of a JPEG TIFF are decoded by threads, one a core."""
    cores, tile = provenance.cores(), sample_tiff.TILE_PX
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "sample.tif"
        sample_tiff.write_sample(path, sample_tiff.sample_pixels(SIDE_PX))
        corners = [
            (y, x) for y in range(0, SIDE_PX, tile) for x in range(0, SIDE_PX, tile)
        ]
        with open_slide(path) as slide, ThreadPoolExecutor(cores) as threads:
            read = lambda yx: slide.read(yx, tile, sample_tiff.MPP)
            read(corners[0])
            start = time.perf_counter()
            list(threads.map(read, corners[1:]))
            seconds = time.perf_counter() - start
    rate = (len(corners) - 1) / seconds
    return (
        f"speed\n  {rate:,.0f} tiles of {tile} px decoded a second, by {cores} threads"
    )
