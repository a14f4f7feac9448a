"""Finds slides by name below a folder, and warns of whatever is left out."""

import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

from absl import logging

from wsi_jax.data.csv_table import CohortError
from wsi_jax.data.slide_id_checks import id_fault
from wsi_jax.slides.dicom import series_uid
from wsi_jax.slides.slide_id import slide_id_of

# Slides and images that no reader opens, at least not under these names.
_UNREADABLE = (
    *(".vsi", ".ets", ".lif", ".nd2", ".qptiff", ".btf", ".tf2", ".tf8", ".afi"),
    *(".kfb", ".sdpc", ".mds", ".tmap", ".ibl", ".lsm", ".oir", ".jp2", ".jpx"),
    *(".j2k", ".dicom", ".dzi", ".gif", ".webp", ".heic"),
)
_INI_BYTES = 1 << 16


def find_slides(
    folder: str | os.PathLike, wanted: Collection[str] | None = None
) -> dict[str, str]:
    """{slide_id: path} of slides anywhere below a folder: those wanted; None for all.

    Links are followed; each file and folder counts once, under its first name. Of a
    DICOM series its largest file stands for all. A warning says what was left out.

    CohortError: no such folder, or two files of one slide.
    """
    if not os.path.isdir(folder):
        raise CohortError(f"{folder}: no such folder of slides; mend the path")
    left_out: dict[str, list[str]] = defaultdict(list)
    paths: dict[str, list[str]] = defaultdict(list)
    files, names = set(), None if wanted is None else frozenset(wanted)
    for path in walk(folder, left_out):
        name = os.path.basename(path)
        stem = slide_id_of(name)
        if names is not None and names.isdisjoint((stem, os.path.splitext(name)[0])):
            continue
        if stem == name:
            if name.lower().endswith(_UNREADABLE):
                left_out["of a kind that cannot be read"].append(path)
            continue
        # Ids that a table asks for may share a file; `lint` judges that.
        file = os.path.realpath(path), stem if names is not None else ""
        if not os.path.isfile(path):
            left_out["links to nowhere and what is no regular file"].append(path)
        elif name.startswith("."):
            left_out["hidden files"].append(path)
        elif fault := id_fault(stem):
            left_out[f"the name is no slide_id: {fault}"].append(path)
        elif file in files:
            left_out["other names of the same file"].append(path)
        else:
            files.add(file)
            paths[stem].append(path)
    if wanted is None:
        paths, others = _one_of_each_series(paths)
        left_out["other files of a DICOM series"] = others
    for reason, passed in left_out.items():
        if passed:
            shown = abbreviate([os.path.relpath(path, folder) for path in passed])
            logging.warning(
                "%s: %d left out, %s: %s", folder, len(passed), reason, shown
            )
    for slide_id, several in paths.items():
        if len(several) > 1:
            raise CohortError(
                f"slide {slide_id!r} is any of {', '.join(sorted(several))}; keep one "
                "of them below the folder"
            )
    return {slide_id: path for slide_id, (path,) in paths.items()}


def walk(folder: str | os.PathLike, left_out: dict[str, list[str]]) -> Iterator[str]:
    """Paths of all files below a folder, in order; links are followed, none twice.

    `left_out` gets what is passed over, by reason: hidden folders, the parts of slides
    of several files, folders that links show again.
    """

    def unreadable(error):
        left_out["folders that cannot be read"].append(error.filename)

    visited = set()
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        real = os.path.realpath(parent)
        if real in visited:
            left_out["folders that a link shows again"].append(parent)
            folders.clear()
            continue
        visited.add(real)
        parts = {
            "hidden folders": {name for name in folders if name.startswith(".")},
            "folders that belong to a slide": _folders_of_slides(
                parent, folders, names
            ),
            "images that belong to a slide": _images_of_slides(parent, names),
        }
        for reason, passed in parts.items():
            left_out[reason] += _in_order(parent, passed)
        passed = set().union(*parts.values())
        folders[:] = map(os.path.basename, _in_order(parent, set(folders) - passed))
        yield from _in_order(parent, set(names) - passed)


def abbreviate(names: Sequence[str]) -> str:
    """The first ten names, and how many more there are."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


def warn_left_out(reason: str, names: Sequence[str], what: str = "slides") -> None:
    """Warns of slides, or of something else, that are left out; if there are any."""
    if names:
        shown = abbreviate(names)
        logging.warning("%d %s left out, %s: %s", len(names), what, reason, shown)


def check_missing(
    folder: str | os.PathLike,
    missing: Sequence[str],
    total: int,
    complete: bool,
    *,
    flag: str = "--config.data.complete=False",
    what: str = "slides",
) -> None:
    """A CohortError for a folder that must be complete and lacks some of `total`
    slides.

    Else a warning. `flag` leaves them out, and `what` says what they are, in the
    message.
    """
    if missing and complete:
        raise CohortError(
            f"{folder}: {len(missing)} of {total} {what} are missing: "
            f"{abbreviate(missing)}; copy them there, or leave them out with {flag}"
        )
    warn_left_out(f"missing in {folder}", missing, what)


def _in_order(parent, names):
    """Paths, of what is there itself before those of links to it."""
    paths = [os.path.join(parent, name) for name in names]
    return sorted(paths, key=lambda path: (os.path.islink(path), path))


def _folders_of_slides(parent, folders, names) -> set[str]:
    """Folders with the pixels of a MIRAX or a VSI file beside them."""
    slides = {name.lower() for name in names}
    return {
        name
        for name in folders
        if (f"{name}.mrxs".lower() in slides and _holds(parent, name, "slidedat.ini"))
        or (name.startswith("_") and f"{name[1:-1]}.vsi".lower() in slides)
    }


def _holds(parent, folder, wanted):
    try:
        inside = os.listdir(os.path.join(parent, folder))
    except OSError:
        return False
    return wanted in map(str.lower, inside)


def _images_of_slides(parent, names) -> set[str]:
    """Images with the pixels of a Hamamatsu VMS or VMU file, which names them."""
    named = set()
    for name in names:
        path = os.path.join(parent, name)
        if name.lower().endswith((".vms", ".vmu")) and os.path.isfile(path):
            with open(path, encoding="latin-1") as file:
                lines = file.read(_INI_BYTES).splitlines()
            named |= {line.partition("=")[2].strip() for line in lines}
    return named & set(names)


def _one_of_each_series(paths):
    """The paths less all but the largest file of each DICOM series, and the others.

    The largest is the finest level: its name is the slide's.
    """
    series = defaultdict(list)
    for several in paths.values():
        for path in several:
            uid = series_uid(path) if path.lower().endswith(".dcm") else ""
            if uid:  # readers look for a slide's files in one folder
                series[os.path.dirname(path), uid].append(path)
    others = set()
    for files in series.values():
        files.sort(key=lambda path: (-os.path.getsize(path), path))
        others.update(files[1:])
    kept = {
        stem: left
        for stem, several in paths.items()
        if (left := [path for path in several if path not in others])
    }
    return kept, sorted(others)
