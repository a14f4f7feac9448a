"""Notebooks are their scripts, run: in step with them, small, of no machine."""

import json

import pytest

from docs.notebooks.make_notebooks import HERE, SCRIPTS, cells

LIMIT = 400_000
MACHINE = "/tmp", "/home", "/root", "/work", "site-packages", "Traceback"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_notebook_is_its_script(name):
    path = HERE / f"{name}.ipynb"
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    shown = [(c["cell_type"], "".join(c["source"])) for c in notebook["cells"]]
    script = (HERE / f"{name}.py").read_text(encoding="utf-8")
    assert shown == cells(script), f"run docs/notebooks/make_notebooks.py {name}"
    assert len(text) < LIMIT
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["execution_count"], "it was run"
            for output in cell["outputs"]:
                assert output["output_type"] != "error"
                for word in MACHINE:
                    plain = {
                        k: v
                        for k, v in output.get("data", output).items()
                        if k != "image/png"
                    }
                    assert word not in json.dumps(plain)
