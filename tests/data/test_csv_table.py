import pytest

from wsi_jax.data.csv_table import CohortError, read_table


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_any_separator_and_a_byte_order_mark(tmp_path, separator, encoding):
    path = tmp_path / "t.csv"
    lines = (("File", "class"), ("a.png", " x "), ("", ""), ("b.png", "y"))
    text = "".join(separator.join(line) + "\n" for line in lines)
    path.write_text(text, encoding=encoding)
    rows = [(2, {"file": "a.png", "class": "x"}), (4, {"file": "b.png", "class": "y"})]
    assert read_table(path, ("file", "class")) == (["file", "class"], rows)


def test_what_must_be_filled_is(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("file,class\na.png,x\nb.png,\n")
    assert len(read_table(path, ["file"])[1]) == 2
    with pytest.raises(CohortError, match=r"t\.csv, line 3: no class; fill it in"):
        read_table(path, ["file", "class"])
    with pytest.raises(CohortError, match=r"t\.csv: no column 'cluster' among"):
        read_table(path, ["cluster"])
