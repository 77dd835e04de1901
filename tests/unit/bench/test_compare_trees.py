"""Two trees side by side: what is matched with what."""

from bench.code.compare_trees import medians, side_by_side, tables

_OLD = """
CPU ms a request:

| case | clients | floor | router |
| --- | --- | --- | --- |
| plain, 30 tokens | 1 | 1.0 | 0.7 |
| plain, 30 tokens | 32 | 1.1 | 0.5 |
| plain, 500 tokens | 32 | 1.2 | 0.6 |

| role | % of one core | MiB |
| --- | --- | --- |
| router-0 | 0.57 | 65 |
| all | 4.50 |  |
"""

_NEW = """
CPU ms a request:

| case | clients | floor | kvmanager | router |
| --- | --- | --- | --- | --- |
| plain, 30 tokens | 32 | 1.1 | 0.1 | 0.4 |
| streamed, 30 tokens | 32 | 2.0 | 0.1 | 0.5 |
| plain, 30 tokens | 1 | 1.0 | 0.3 | 0.6 |
"""


def test_rows_are_matched_by_label_and_figures_by_heading() -> None:
    (headings, rows), _ = side_by_side(tables(_OLD), tables(_NEW))
    assert headings == ["case", "clients", "floor", "kvmanager", "router"]
    assert rows == [
        ["plain, 30 tokens", "32", "1.1", "- -> 0.1", "0.5 -> 0.4"],
        ["streamed, 30 tokens", "32", "- -> 2.0", "- -> 0.1", "- -> 0.5"],
        ["plain, 30 tokens", "1", "1.0", "- -> 0.3", "0.7 -> 0.6"],
        ["plain, 500 tokens", "32", "1.2 -> -", "-", "0.6 -> -"],
    ]


def test_a_table_of_one_tree_is_shown_with_its_empty_cells() -> None:
    _, (headings, rows) = side_by_side(tables(_OLD), tables(_NEW))
    assert headings == ["role", "% of one core", "MiB"]
    assert rows == [["router-0", "0.57 -> -", "65 -> -"], ["all", "4.50 -> -", " -> -"]]


def test_a_single_row_needs_no_label() -> None:
    old, new = (
        "| seconds | ms |\n| --- | --- |\n| 1.5 | 3 |",
        "| seconds | ms |\n| --- | --- |\n| 1.4 | 3 |",
    )
    assert side_by_side(tables(old), tables(new)) == [(["seconds", "ms"], [["1.5 -> 1.4", "3"]])]


def test_labels_with_numbers_stay_whole_over_the_rounds() -> None:
    rounds = [
        tables(f"| blob | GB/s |\n| --- | --- |\n| 2.8 MiB (30 layers) | {figure} (0.1 to 9.0) |")
        for figure in ("1.0", "3.0", "1.5")
    ]
    assert medians(rounds) == [[["blob", "GB/s"], ["2.8 MiB (30 layers)", "1.5"]]]
