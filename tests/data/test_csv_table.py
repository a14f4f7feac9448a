import pytest

from wsi_jax.data.csv_table import CohortError, read_table


def test_what_must_be_filled_is(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("file,class\na.png,x\nb.png,\n")
    assert len(read_table(path, ["file"])[1]) == 2
    with pytest.raises(CohortError, match=r"t\.csv, line 3: no class; fill it in"):
        read_table(path, ["file", "class"])
    with pytest.raises(CohortError, match=r"t\.csv: no column 'cluster' among"):
        read_table(path, ["cluster"])
