"""The `wsi-jax` command.

A command imports what it needs when it runs, so that help and refusals answer at once.
"""

import enum
import functools
import shlex
import sys
from typing import Annotated

import typer

from wsi_jax.commands.from_other_tools import check_encoder, import_cohort, migrate
from wsi_jax.commands.on_slides import compare, evaluate, import_from_here, predict
from wsi_jax.commands.plain_errors import PlainGroup

HELP = """Whole-slide classification: train, predict, validate and compare.

\b
wsi-jax list methods
wsi-jax show abmil train.optimiser
wsi-jax train --method abmil --manifest slides.csv --config.train.steps=1000
wsi-jax predict --run runs/abmil --out predictions slide.svs FOLDER more.csv
wsi-jax evaluate runs/abmil --manifest other_hospital.csv
wsi-jax compare runs/abmil runs/clam_sb
"""

app = typer.Typer(
    cls=PlainGroup,
    help=HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
ANY_WORDS = {"ignore_unknown_options": True}
Fields = Annotated[
    list[str],
    typer.Argument(
        metavar="FIELDS", help="fields of a config: --config.train.steps=100"
    ),
]
Method = Annotated[
    str,
    typer.Option(help="name that `wsi-jax list` prints, or my_module:NAME of your own"),
]
Manifest = Annotated[str, typer.Option(help="CSV of slides: path, label, ...")]


class Kind(enum.Enum):
    """What `wsi-jax list` lists."""

    methods = "methods"
    encoders = "encoders"
    configs = "configs"


@app.command(context_settings=ANY_WORDS)
def train(fields: Fields = (), method: Method = "", manifest: Manifest = ""):
    """Train a method on labelled slides; given again, go on.

    Instead of --method, --config FILE takes a config file; --config.train.steps=100
    sets a field of either, and `wsi-jax show METHOD` shows all fields.
    """
    from wsi_jax.commands import config_command_line

    _launch_method(config_command_line.run_training, "train", fields, method, manifest)


@app.command(context_settings=ANY_WORDS)
def extract(
    fields: Fields = (),
    method: Method = "",
    manifest: Manifest = "",
    status: Annotated[
        bool, typer.Option("--status", help="say how far it is, and make nothing")
    ] = False,
):
    """Make the features that a method trains on, only.

    The manifest may be a folder of slides. Flags are those of `train`.

    As a task of a job array, --config.shard=auto makes those of a part of the slides.
    """
    from wsi_jax.commands import config_command_line

    main = config_command_line.run_extraction
    if status:
        named = {"--method": method, "--manifest": manifest}
        words = [f"{flag}={value}" for flag, value in named.items() if value]
        command = shlex.join(["wsi-jax", "extract", *words, *fields])
        main = functools.partial(config_command_line.run_status, command=command)
    _launch_method(main, "extract", fields, method, manifest, "--status")


def _launch_method(main, command, words, method, manifest, *flags):
    from wsi_jax import configs
    from wsi_jax.commands import config_command_line

    import_from_here()
    config_command_line.check_flags(words, ["--method", "--manifest", *flags])
    argv = [f"wsi-jax {command}", *words]
    named = any(word.partition("=")[0] == "--config" for word in words)
    if method and named:
        raise SystemExit("--method and --config name a config each; leave one out")
    if not method and not named:
        raise SystemExit(
            "no method; add --method NAME (`wsi-jax list` has the names), or --config "
            "FILE, a file with get_config()"
        )
    if method:
        try:  # the file comes before its fields
            argv.insert(1, f"--config={configs.config_path(method)}")
        except ValueError as error:
            raise SystemExit(f"--method={method}: {error}") from error
    if manifest:
        argv.append(f"--config.data.manifest={manifest}")
    sys.argv = argv  # where ml_collections reads values of fields
    config_command_line.launch(main)


@app.command(name="list")
def list_names(
    kind: Annotated[Kind | None, typer.Argument(help="all where left out")] = None,
):
    """List methods, encoders, and configs of this checkout."""
    from wsi_jax.commands import listing

    tables = {Kind.methods: listing.methods, Kind.encoders: listing.encoders}
    if listing.CHECKOUT.is_dir():
        tables[Kind.configs] = listing.checkout_configs
    elif kind is Kind.configs:
        raise SystemExit(f"no {listing.CHECKOUT} here: they are in a checkout")
    print("\n\n".join(table() for one, table in tables.items() if kind in (None, one)))


@app.command()
def show(
    config: Annotated[
        str, typer.Argument(help="method, name of `list configs`, or file; :VARIANT")
    ],
    below: Annotated[
        str, typer.Argument(help="part or field, as train.optimiser")
    ] = "",
):
    """Show all fields of a config: flag, value, meaning.

    Each line can be given to `wsi-jax train`.
    """
    from wsi_jax.commands import listing
    from wsi_jax.run.config_file import read_config

    import_from_here()
    try:
        file = listing.config_file(config)
        fields = listing.fields(read_config(file, kind="object"), below)
        print(file, *fields, sep="\n")
    except ValueError as error:
        raise SystemExit(str(error)) from error


for command_on_slides in (predict, evaluate, compare):
    app.command()(command_on_slides)


anything = app.command(name="import", context_settings=ANY_WORDS, add_help_option=False)
anything(import_cohort)
app.command()(migrate)
app.command()(check_encoder)


@app.command()
def doctor():
    """Check this machine: versions, devices, formats, speed."""
    from wsi_jax.run.doctor import MEND, examine

    mends = 0
    for line in examine():
        mends += line.startswith(MEND)
        print(line, flush=True)
    raise SystemExit(f"{mends} to mend" if mends else 0)


def run_command(name: str) -> None:
    """Runs one command of `wsi-jax` on this process's command line."""
    app([name, *sys.argv[1:]], prog_name="wsi-jax")
