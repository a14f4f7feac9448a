"""Commands for who comes from other tools: `import`, `migrate`, `check-encoder`."""

import functools
import pathlib
from typing import Annotated

import typer

from wsi_jax.run.interrupts import stoppable

# What `migrate` calls fields of a config, in errors.
MIGRATE_FLAGS = {"max_refused": "--max-refused", "run_dir": "--out"}


def import_cohort(words: Annotated[list[str], typer.Argument()] = ()):
    """Make a manifest of CSVs and splits of CLAM, TRIDENT, ..."""
    from wsi_jax.run import import_manifest

    import_manifest.main(words)


@stoppable()
def migrate(
    project: Annotated[str, typer.Argument(help="folder of a CLAM or TRIDENT project")],
    out: Annotated[pathlib.Path, typer.Option(help="folder of the runs")],
    features: Annotated[str, typer.Option(help="folder of SLIDE.h5, of several")] = "",
    labels: Annotated[str, typer.Option(help="CSV of labels, of several")] = "",
    splits: Annotated[str, typer.Option(help="folder of splits, of several")] = "",
    label_column: Annotated[str, typer.Option(help="column of the labels")] = "label",
    steps: Annotated[int, typer.Option(min=1, help="batches of each training")] = 300,
    max_refused: Annotated[
        float, typer.Option(min=0, max=1, help="share of slides that may be refused")
    ] = 0.1,
    export: Annotated[
        bool, typer.Option("--export", help="write attention and weights as CLAM does")
    ] = False,
):
    """Train on a CLAM or TRIDENT project as it lies; compare.

    ABMIL and CLAM-SB learn from the project's features, on its folds; what comes out
    is held against its results. Given again, it goes on.
    """
    from wsi_jax.commands.config_command_line import errors_in_one_line
    from wsi_jax.run.config_file import rename_fields
    from wsi_jax.run.migrate import migrate as project_migration
    from wsi_jax.run.migrate.project import Options

    options = Options(
        features=features,
        labels=labels,
        splits=splits,
        column=label_column,
        max_refused=max_refused,
    )
    rename = functools.partial(
        rename_fields, names=MIGRATE_FLAGS, others="--config.{} of `wsi-jax train`"
    )
    with errors_in_one_line(out, rename):
        lines = project_migration.migrate(
            pathlib.Path(project), out, options, steps=steps, export=export
        )
    print(f"{project_migration.table(lines)}\n\n{out / 'comparison.csv'}")


def check_encoder(
    name: Annotated[str, typer.Argument(help="name of `wsi-jax list encoders`")],
    weights: Annotated[str, typer.Option(help="its .safetensors file")],
    tiles: Annotated[
        str, typer.Option(help="slide, or folder of images; noise where left out")
    ] = "",
    mpp: Annotated[
        float | None, typer.Option(help="um/px of a slide whose file does not say")
    ] = None,
):
    """Hold an encoder against its PyTorch original."""
    from wsi_jax.commands.config_command_line import errors_in_one_line
    from wsi_jax.run import check_encoder as encoder_check

    with errors_in_one_line("."):
        cosines = encoder_check.check_encoder(name, weights, tiles, mpp)
    print(encoder_check.report(cosines))
    if not encoder_check.is_alike(cosines):
        raise SystemExit(1)
