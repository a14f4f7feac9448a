"""Pages are true: links lead somewhere, commands have the flags that are shown."""

import importlib.util
import itertools
import pathlib
import re
import shlex

import pytest

from wsi_jax import configs
from wsi_jax.run.config_file import has_field, read_config

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md"))]
BLOCK = re.compile(r"^```\n(.*?)^```", re.M | re.S)


def commands():
    """(page, words) of every command in a block of a page."""
    for page in PAGES:
        for block in BLOCK.findall(page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").split("\n"):
                for command in line.split(" && "):
                    words = shlex.split(command)
                    if words[:2] == ["python", "-m"] or words[:1] == ["wsi-jax"]:
                        yield pytest.param(words, id=f"{page.name}-{' '.join(words)}")


def config_of(words):
    """The config that a command reads; None if it takes none."""
    flags = dict(itertools.pairwise(words))
    if "--method" in flags:
        return read_config(configs.config_path(flags["--method"]), "object")
    return (
        read_config(str(ROOT / flags["--config"]), "object")
        if "--config" in flags
        else None
    )


@pytest.mark.parametrize("words", [*commands()])
def test_a_command_has_what_a_page_shows(words, monkeypatch):
    monkeypatch.chdir(ROOT)
    if words[0] == "python":
        assert importlib.util.find_spec(words[2]), words[2]
    config = config_of(words)
    fields = re.findall(r"--(?:no)?config\.([\w.]+)", " ".join(words))
    assert config is not None or not fields
    assert [f for f in fields if not has_field(config, f)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), link


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
