"""What README.md says in numbers is what stands in benchmarks/results."""

from benchmarks.readme import ROOT, filled


def test_its_tables_are_made_from_the_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert filled(text) == text
