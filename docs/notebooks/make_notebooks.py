"""Makes the notebooks of this folder from the scripts beside them, and runs them.

    python docs/notebooks/make_notebooks.py

A script has cells between lines `# %%`, text in those marked `[markdown]`. A notebook
is run in a folder of its own, so that its outputs name no path of this machine. Needs
the extra `docs` and a checkout.
"""

import os
import pathlib
import re
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
SCRIPTS = "own_cohort", "features_from_elsewhere"
MARK = re.compile(r"^# %%(.*)\n", re.M)


def cells(script: str) -> list[tuple[str, str]]:
    """(kind, text) of each cell of a script: "markdown" or "code"."""
    _, *parts = MARK.split(script)
    pairs = zip(parts[::2], parts[1::2], strict=True)
    plain = lambda text: re.sub(r"^# ?", "", text.strip(), flags=re.M)
    return [
        ("markdown", plain(text)) if "[markdown]" in mark else ("code", text.strip())
        for mark, text in pairs
    ]


def make(name: str) -> None:
    """Writes one notebook, with what its cells print and show."""
    import nbformat
    from nbclient import NotebookClient

    script = (HERE / f"{name}.py").read_text(encoding="utf-8")
    new = nbformat.v4
    made = {"markdown": new.new_markdown_cell, "code": new.new_code_cell}
    notebook = new.new_notebook(
        cells=[made[kind](text) for kind, text in cells(script)],
        metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    )
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        options = {"timeout": 1800, "coalesce_streams": True}
        NotebookClient(notebook, resources=resources, **options).execute()
    for i, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{i}", {}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
    path = HERE / f"{name}.ipynb"
    nbformat.write(notebook, path)
    print(f"{path.name}: {path.stat().st_size // 1000} kB")


def main() -> None:
    """Makes all of them, or those named."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ |= {"PYTHONPATH": path.rstrip(os.pathsep), "TF_CPP_MIN_LOG_LEVEL": "3"}
    for name in sys.argv[1:] or SCRIPTS:
        make(name)


if __name__ == "__main__":
    main()
