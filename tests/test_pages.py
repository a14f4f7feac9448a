"""Pages are true: links lead somewhere, commands and messages are as they are shown."""

import ast
import functools
import importlib.util
import itertools
import pathlib
import re
import shlex

import pytest
import typer

from docs.generate import ENCODERS
from wsi_jax import cli, configs
from wsi_jax.config_fields import describe
from wsi_jax.run.config_file import has_field, read_config

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted(DOCS.glob("**/*.md")),
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
# Modules whose flags are parsed elsewhere.
PARSERS = {
    "experiments.import_cohort": "wsi_jax/run/import_manifest.py",
    "import": "wsi_jax/run/import_manifest.py",
    "benchmarks": "benchmarks/record.py",
}


def text_of(page):
    return page.read_text(encoding="utf-8")


def commands():
    """(page, words) of every command in a block of a page."""
    for page in PAGES:
        blocks = BLOCK.findall(text_of(page))
        for block in [text for kind, text in blocks if kind in ("", "bash", "sh")]:
            for line in block.replace("\\\n", " ").split("\n"):
                for command in line.split(" && "):
                    words = shlex.split(command) if "wsi" in command else []
                    words = words or command.split()
                    if words[:2] == ["python", "-m"] or words[:1] == ["wsi-jax"]:
                        yield pytest.param(words, id=f"{page.name}-{' '.join(words)}")


def config_of(words):
    """The config that a command reads; None without one, or for a reader's own file."""
    flags = dict(itertools.pairwise(words))
    file = flags.get("--config")
    if "--method" in flags:
        file = configs.config_path(flags["--method"])
    elif file and not (ROOT / file.partition(":")[0]).exists():
        return None  # a file that the reader writes
    return read_config(str(ROOT / file), "object") if file else None


@functools.cache
def flags_of(name):
    """The flags of a subcommand of `wsi-jax`."""
    command = typer.main.get_command(cli.app).commands[name]
    return {option for parameter in command.params for option in parameter.opts}


def accepted_flags(words):
    """The flags that a command takes besides fields of its config, as text."""
    if words[0] == "wsi-jax":
        own, also = " ".join(flags_of(words[1])), PARSERS.get(words[1])
        return own + (text_of(ROOT / also) if also else "")
    if words[2] == "experiments.predict":
        return " ".join(flags_of("predict"))
    own = importlib.util.find_spec(words[2]).origin
    also = PARSERS.get(words[2]) or PARSERS.get(words[2].partition(".")[0])
    return pathlib.Path(own or "").read_text() + (text_of(ROOT / also) if also else "")


@pytest.mark.parametrize("words", [*commands()])
def test_a_command_has_what_a_page_shows(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    if words[0] == "python":
        if words[2] in ("venv", "build"):
            return
        assert importlib.util.find_spec(words[2]), words[2]
    flags = [word.partition("=")[0] for word in words if word.startswith("--")]
    own = [f for f in flags if not re.match(r"--(no)?config\b|--help", f)]
    accepted = accepted_flags(words)
    assert [f for f in own if f not in accepted] == []
    config = config_of(words)
    fields = re.findall(r"--(?:no)?config\.([\w.]+)", " ".join(words))
    if config is None:
        assert not fields or "--config" in words
    else:
        assert [f for f in fields if not has_field(config, f)] == []


@functools.cache
def all_fields():
    """Every field, and part of a config, that some method or encoder has."""
    names = [f"encoder.{one.path}" for kind in ENCODERS for one in describe(kind())]
    for method in configs.methods():
        config = read_config(configs.config_path(method), "Experiment")
        names += [one.path for one in describe(config)]
    parts = set()
    for name in names:
        pieces = name.split(".")
        parts |= {".".join(pieces[:i]) for i in range(1, len(pieces) + 1)}
    return parts


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_fields_and_commands_in_the_text_are_there(page):
    text = text_of(page)
    if page.name == "names.md":  # it has names that are gone
        return
    for code in re.findall(r"`([^`\n]+)`", text):
        for field in re.findall(r"--(?:no)?config\.([a-z][\w.]*\w)", code):
            practice = field.startswith(("data.practice", "data.root"))
            assert practice or field in all_fields(), field
        if match := re.match(r"wsi-jax ([a-z-]+)\b", code):
            assert flags_of(match[1]) is not None
        for method in re.findall(r"--method (\w+)", code):
            assert method in configs.methods() or method == "NAME", method


def anchors(page):
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = re.sub(r"^```.*?^```", "", text_of(page), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", text_of(page)):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        file = page.parent / path if path else page
        assert file.exists(), target
        if page.is_relative_to(DOCS):  # the site has nothing else
            assert file.resolve().is_relative_to(DOCS), target
        if anchor:
            assert anchor in anchors(file), target


def test_every_page_is_reached_from_the_menu():
    menu = re.findall(r'"([\w/]+\.md)"', text_of(ROOT / "zensical.toml"))
    assert len(menu) == len(set(menu))
    reached, open_ = set(), [DOCS / name for name in menu]
    while open_:
        page = open_.pop().resolve()
        if page not in reached:
            reached.add(page)
            links = re.findall(r"\]\(([^)#:]+\.md)", text_of(page))
            open_ += [page.parent / link for link in links]
    assert {page for page in PAGES if DOCS in page.parents} <= reached


@functools.cache
def messages():
    """The strings of the package, with "…" where something is filled in."""
    texts = []
    for path in (ROOT / "wsi_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, ast.JoinedStr):
                parts = [getattr(part, "value", None) for part in node.values]
                parts = [part if isinstance(part, str) else "…" for part in parts]
                texts.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


QUOTED = re.findall(r"^> (.+)$", text_of(DOCS / "troubleshooting.md"), re.M)


@pytest.mark.parametrize("message", QUOTED)
def test_a_message_that_is_explained_is_one_of_ours(message):
    if message.startswith("RESOURCE_EXHAUSTED"):  # JAX's
        return
    parts = message.split("…")
    assert any(has_in_order(text, parts) for text in messages()), message


def has_in_order(text, parts):
    """Whether a text has some parts, one after the other."""
    start = 0
    for part in parts:
        start = text.find(part, start)
        if start < 0:
            return False
        start += len(part)
    return True


def test_the_readme_is_short():
    assert len(text_of(ROOT / "README.md").splitlines()) <= 150
