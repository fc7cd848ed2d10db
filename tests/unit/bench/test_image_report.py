"""The tables of the container image."""

from __future__ import annotations

from bench import results
from bench.report import image


def test_the_page_has_the_table_of_the_result() -> None:
    content = results.load(results.RESULTS, "image")
    assert content and image.BLOCK.text(image.PAGE.read_text()) == image.table(content), "run: python -m bench table"


def test_small_layers_share_a_row() -> None:
    content = results.load(results.RESULTS, "image")
    assert content
    sizes = [layer["size"] for layer in content["result"]["layers"]]
    rows = image.table(content).partition("| layer |")[2].splitlines()[2:]
    assert len(rows) == 2 + sum(size >= image.SMALL for size in sizes[1:])
    assert content["result"]["size"] >= sum(sizes) * 0.99
