"""Slides found by name below a folder."""

import os
from collections import defaultdict
from collections.abc import Collection, Sequence

from wsi_jax.slides.slide import known_stem
from wsi_jax.slides.table import CohortError


def find_slides(
    folder: str | os.PathLike, wanted: Collection[str] | None = None
) -> dict[str, str]:
    """{slide_id: path} of slides anywhere below a folder: those wanted; None for all.

    Raises:
        CohortError: no such folder, or two files of one slide.
    """
    if not os.path.isdir(folder):
        raise CohortError(f"{folder}: no such folder of slides; mend the path")
    found = defaultdict(list)
    for parent, _, names in os.walk(folder):
        for name in names:
            stem = known_stem(name)
            if (
                stem != name
                and not name.startswith(".")
                and (wanted is None or stem in wanted)
            ):
                found[stem].append(os.path.join(parent, name))
    for slide_id, paths in found.items():
        if len(paths) > 1:
            raise CohortError(
                f"slide {slide_id!r} is any of {', '.join(sorted(paths))}; keep one "
                "of them below the folder"
            )
    return {slide_id: path for slide_id, (path,) in found.items()}


def some(names: Sequence[str]) -> str:
    """The first ten names, and how many more there are."""
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more
