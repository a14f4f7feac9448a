"""What is generated on the pages is what the code says now."""

import pytest

from docs import generate

PAGES = generate.pages()
MEND = "run `python -m docs.generate` and commit what it writes"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_a_page_is_as_its_sources_are(page):
    assert page.read_text(encoding="utf-8") == PAGES[page], MEND


def test_every_field_says_what_it_is():
    page = generate.fields_page()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    assert [row for row in rows if row.endswith("|  |")] == []


def test_a_docstring_becomes_lists():
    text = generate._docstring(generate.getattr_path.__doc__)
    assert text == 'The value at "train.steps".\n'
    text = generate._docstring(
        "One line.\n\nArgs:\n    a, b: two\n        lines.\n\nRaises:\n    E: why.\n"
    )
    assert (
        text
        == "One line.\n\nArguments:\n\n- `a, b`: two lines.\n\nErrors:\n\n- `E`: why.\n"
    )
