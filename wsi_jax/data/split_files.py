"""Split files of CLAM, SASHA and torchmil: which slide trains, validates and tests.

splits_0.csv       ,train,val,test     ragged columns of slide ids
splits_0_bool.csv  ,train,val,test     a line per slide: slide_1,True,False,False
split_1.json       {"train_names": [...], "val_names": [...], "test_names": [...]}
splits.csv         bag_name,split
"""

import json
import os
import pathlib
from collections.abc import Iterable, Iterator

from wsi_jax.data.cohort import SPLITS, Cohort, in_split
from wsi_jax.data.csv_table import CohortError, find_column, read_table, write_table
from wsi_jax.slides.slide_id import slide_id_of

PathLike = str | os.PathLike


def read_clam_split(path: PathLike) -> dict[str, str]:
    """{slide_id: split} of either form; columns of other names are ignored.

    CohortError: not such a file, or a slide is in two splits; so do all here.
    """
    header, lines = read_table(path)
    for name in SPLITS:
        find_column(path, header, (name,), "it is ,train,val,test")
    cells = {cell[name].casefold() for _, cell in lines for name in SPLITS}
    if cells <= {"true", "false"}:
        pairs = (
            (cell[header[0]], name)
            for _, cell in lines
            for name in SPLITS
            if cell[name].casefold() == "true"
        )
    else:
        pairs = ((cell[name], name) for _, cell in lines for name in SPLITS)
    return _once(path, pairs)


def read_sasha_split(path: PathLike) -> dict[str, str]:
    """{slide_id: split} of a JSON of three lists."""
    try:
        tree = json.loads(pathlib.Path(path).read_text(encoding="utf-8-sig"))
        lists = {split: tree[f"{split}_names"] for split in SPLITS}
        pairs = [(str(name), split) for split in SPLITS for name in list(lists[split])]
    except FileNotFoundError:
        raise CohortError(f"{path}: no such file of splits; mend the path") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CohortError(
            f"{path}: not a JSON of train_names, val_names and test_names ({error!r})"
        ) from None
    return _once(path, pairs)


def read_torchmil_split(path: PathLike) -> dict[str, str]:
    """{slide_id: split} of a CSV bag_name,split."""
    header, lines = read_table(path)
    for name in ("bag_name", "split"):
        find_column(path, header, (name,), "it is bag_name,split")
    return _once(path, ((cell["bag_name"], cell["split"]) for _, cell in lines))


def write_clam(folder: PathLike, cohort: Cohort, index: int = 0) -> None:
    """Writes `dataset.csv` and `splits_{index}.csv`, `_bool.csv`, `_descriptor.csv`.

    The folder is made if absent. CohortError: a slide has no split.
    """
    if open_ := [row.slide_id for row in cohort.rows if row.split not in SPLITS]:
        raise CohortError(f"{len(open_)} slides have no split ({open_[0]}); assign one")
    ids = [[row.slide_id for row in in_split(cohort, s).rows] for s in SPLITS]
    longest = max(map(len, ids))
    ragged = zip(*(part + [""] * (longest - len(part)) for part in ids), strict=True)
    each = ((r.slide_id, *(r.split == s for s in SPLITS)) for r in cohort.rows)
    counts = (
        (c, *(sum(r.label == c for r in in_split(cohort, s).rows) for s in SPLITS))
        for c in cohort.classes
    )
    folder, name, header = pathlib.Path(folder), f"splits_{index}", ("", *SPLITS)
    folder.mkdir(parents=True, exist_ok=True)
    dataset = ((row.patient_id, row.slide_id, row.label) for row in cohort.rows)
    write_table(folder / "dataset.csv", ("case_id", "slide_id", "label"), dataset)
    ragged = ((i, *cells) for i, cells in enumerate(ragged))
    write_table(folder / f"{name}.csv", header, ragged)
    write_table(folder / f"{name}_bool.csv", header, each)
    write_table(folder / f"{name}_descriptor.csv", header, counts)


def _once(path, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The pairs as a dict, if no slide is in two splits."""
    split_of = {}
    for slide_id, split in _named(path, pairs):
        if split_of.setdefault(slide_id, split) != split:
            raise CohortError(
                f"{path}: slide {slide_id!r} is in {split_of[slide_id]!r} and in "
                f"{split!r}; keep it in one"
            )
    if not split_of:
        raise CohortError(f"{path}: names no slide")
    return split_of


def _named(path, pairs) -> Iterator[tuple[str, str]]:
    for name, split in pairs:
        split = {"valid": "val", "validation": "val"}.get(split.casefold(), split)
        if split not in SPLITS:
            raise CohortError(f"{path}: split {split!r}; use train, val or test")
        if name:
            yield slide_id_of(name), split
