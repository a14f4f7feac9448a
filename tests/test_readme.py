"""What README.md says in numbers is what stands in benchmarks/results."""

from benchmarks.readme import ROOT, filled


def test_its_tables_are_made_from_the_results():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert filled(text) == text


def test_a_table_of_facts_needs_no_results():
    text = filled("a\n<!-- encoders -->\nold\n<!-- end -->\n")
    assert text.startswith("a\n<!-- encoders -->\n| name |")
    assert "| `uni` |" in text
    assert "old" not in text
