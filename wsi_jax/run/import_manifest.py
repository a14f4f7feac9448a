r"""Another tool's CSVs and splits in, our manifest out.

    wsi-jax import --from clam --csv dataset.csv --splits splits_0.csv \
        --slides SLIDES --out my_slides.csv

    --from           --csv                         besides
    clam             case_id,slide_id,label        --splits splits_0.csv (or _bool.csv)
    sasha            the same, or with patient_id  --splits split_1.json
    torchmil         any CSV with slide_id,label   --splits splits.csv
    streaming_clam   train.csv val.csv test.csv
    trident          any CSV with slide_id,label   --wsis list.csv (wsi,mpp)
    manifest         ours

Slides are found by name anywhere below --slides. Prints how many there are of each
split and class, and what would be refused: a patient in two splits, a class missing.
--clam FOLDER writes the cohort as CLAM has it, besides.
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from wsi_jax.data import tool_manifests
from wsi_jax.data.cohort import Cohort, CohortError, read_manifest, write_manifest
from wsi_jax.data.lint import format_counts, lint
from wsi_jax.data.split_files import write_clam
from wsi_jax.data.splits import Split, assign_splits
from wsi_jax.run.config_file import no_such_flag

SOURCES = ("clam", "sasha", "torchmil", "streaming_clam", "trident", "manifest")


def read(args: argparse.Namespace) -> Cohort:
    """The cohort that the command line names."""
    tables, tool = args.csv, args.source
    expected = 3 if tool == "streaming_clam" else 1
    if len(tables) != expected:
        raise CohortError(f"--from {tool}: --csv takes {expected} files")
    if tool == "manifest":
        return read_manifest(tables[0], args.classes)
    if args.slides is None:
        raise CohortError("where are the slides? add --slides FOLDER")
    for tools, flag in ((("sasha", "torchmil"), "splits"), (("trident",), "wsis")):
        if tool in tools and getattr(args, flag) is None:
            raise CohortError(f"--from {tool}: add --{flag} FILE")
    slides = tool_manifests.Slides(
        folder=args.slides,
        label=args.label,
        classes=tuple(args.classes),
        complete=not args.allow_missing,
    )
    if tool == "clam":
        return tool_manifests.from_clam(tables[0], args.splits, slides)
    if tool == "sasha":
        return tool_manifests.from_sasha(tables[0], args.splits, slides)
    if tool == "torchmil":
        return tool_manifests.from_torchmil(tables[0], args.splits, slides)
    if tool == "streaming_clam":
        return tool_manifests.from_streaming_clam(*tables, slides)
    return tool_manifests.from_trident(tables[0], args.wsis, slides)


def check(cohort: Cohort) -> str:
    """The counts, of splits as a run would draw them where none are named.

    Raises:
        CohortError: what a run would refuse.
    """
    n = sum(not row.split for row in cohort.rows)
    if not n:
        return format_counts(lint(cohort))
    drawn = f"{n} slides have no split: a run draws it, here with its default seed\n"
    return drawn + format_counts(lint(assign_splits(cohort, Split())))


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a command line."""

    def error(self, message: str) -> None:
        raise SystemExit(message)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """What a command line asks for; None for that of this process."""
    parser = Parser(
        prog="wsi-jax import",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--from", required=True, choices=SOURCES, dest="source")
    parser.add_argument("--csv", required=True, nargs="+", help="slides and labels")
    parser.add_argument("--splits", help="file that says which slide trains and tests")
    parser.add_argument("--wsis", help="TRIDENT's list, wsi,mpp")
    parser.add_argument("--slides", help="folder that holds the slides")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="our manifest")
    parser.add_argument("--label", default="label", help="column of the labels")
    parser.add_argument("--classes", nargs="+", default=(), help="labels, in order")
    parser.add_argument(
        "--allow-missing",
        action="store_true",
        help="leave out slides not there",
    )
    parser.add_argument("--clam", help="folder for the cohort in CLAM's form")
    words = sys.argv[1:] if words is None else words
    for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
        if flag not in parser._option_string_actions:
            raise SystemExit(no_such_flag(flag, parser._option_string_actions))
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Imports the cohort that a command line names, by default this process's."""
    args = parse(words)
    try:
        cohort = read(args)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        write_manifest(args.out, cohort)
        if args.clam:
            write_clam(args.clam, cohort)
    except (CohortError, OSError) as error:
        raise SystemExit(str(error)) from error
    print(f"{args.out}: {len(cohort.rows)} slides, classes {cohort.classes}")
    try:
        print(check(cohort))
    except CohortError as error:
        print(f"a run will refuse {args.out}: {error}", file=sys.stderr)
        raise SystemExit(1) from error
