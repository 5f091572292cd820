"""The tables as LaTeX, what escapes, and two directories laid side by side."""

from __future__ import annotations

import re

import pytest

from baselines.harness.report.render import Section, render
from baselines.harness.report.tables import Table, TableCell

EMPTY = Table("", "", ("a",), ())


def report(kind: str, *tables: Table, title: str = "", failures: Table = EMPTY) -> str:
    sections = [Section(title, "", tables), Section("without tables", "", [])]
    content = dict.fromkeys(["introduction", "no_pictures", "command", "machine", "manifest"], "")
    content |= {
        "title": "t",
        "sections": sections,
        "front": [],
        "pictures": [],
        "failures": failures,
    }
    return render(kind, **content)


def table(*rows: tuple[str, ...], header=("model", "depth", "value ± 2 s.e.")) -> Table:
    return Table("A & B", "50% of it", header, tuple(tuple(map(TableCell, row)) for row in rows))


def test_a_table_has_three_rules_and_no_line_between_columns():
    text = report("tex", table(("MAF", "2", "-1.5 ± 0.1"), ("MAF", "5", "1e-05")))
    assert [text.count(rule) for rule in ("\\toprule", "\\midrule", "\\bottomrule")] == [1, 1, 1]
    assert "\\begin{tabular}{lrr}" in text
    assert "|" not in text
    assert "MAF & 2 & $-$1.5 $\\pm$ 0.1 \\\\\n & 5 & 1e-05 \\\\" in text
    assert "A \\& B. 50\\% of it" in text


def test_every_line_has_as_many_cells_as_columns():
    text = report("tex", table(("MAF", "2", "1"), ("NICE", "failed: out of memory & more")))
    body = text[text.index("\\midrule") : text.index("\\bottomrule")]
    first, second = (line for line in body.splitlines() if line.endswith("\\\\"))
    assert len(re.findall(r"(?<!\\)&", first)) == 2
    assert "\\multicolumn{2}{l}{failed: out of memory \\& more}" in second


def test_names_cannot_leave_their_cell():
    hostile = "\\end{document} $x_^ {a} #1 % ~ <b> | é 数 ±"
    text = report("tex", table((hostile, "2", "1")))
    text = text[text.index("\\midrule\n") : text.index(" & 2 & 1")]
    assert "\\end{document}" not in text
    assert not re.search(r"(?<!\\)[#%&_]", text)
    assert text.count("{") == text.count("}")
    assert "é" in text
    assert "数" not in text


def test_a_document_has_a_section_for_each_data_set_and_no_lists_of_words():
    words = Table("", "", ("a",), ((TableCell("x"),),), words=True)
    text = report("tex", table(("MAF", "2", "1")), title="pinwheel", failures=words)
    assert re.findall(r"section\*\{(.*?)\}", text) == ["pinwheel"]
    assert text.count("\\begin{table}") == 1
    assert text.index("\\begin{document}") < text.index("\\end{document}")


def test_words_stand_left_and_numbers_right():
    lines = table(
        ("MAF", "budget", "-1.5", "", "nan"),
        ("NICE", "", "± 0.1", "", "inf"),
        ("IAF", "failed: 3"),
        header=("model", "view", "value", "none", "n"),
    )
    assert lines.sides == "llrrr"
    assert "\\begin{tabular}{llrrr}" in report("tex", lines)
    assert "|---|---|---:|---:|---:|" in report("md", lines)
    page = report("html", lines)
    assert page.count('<td class="left">') == 2


@pytest.mark.parametrize("value", ["-0.1", "0.2 (-0.1)", "-0.1 ± 2", "0 to -0.1", "-inf"])
def test_each_negative_number_gets_a_minus_sign(value):
    assert report("tex", table(("MAF", value, "1"))).count("$-$") == 1


@pytest.mark.parametrize(
    "value", ["", "-", "-x", "0", "1e-05", "2-3", "maf-2", "1.2 (0.9\u20131.1)", "e-inf"]
)
def test_only_a_number_gets_a_minus_sign(value):
    assert "$-$" not in report("tex", table(("MAF", value, "1")))
