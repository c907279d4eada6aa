"""The documentation: what a page is made of, and, as a long proof, that the site is whole and offline."""

import os
import re
import subprocess
import sys
from pathlib import Path

import docs
import nbformat
import pytest
from api_pages import api_pages
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

ROOT = Path(__file__).resolve().parents[1]


def written(cells, source="nbs/docs/01_two_clocks.ipynb", fold=False):
    "The text of a page with these cells."
    page = docs.Page(ROOT / source)
    page.notebook(new_notebook(cells=cells), fold)
    return page, "\n\n".join(page.parts)


def test_links_lead_to_pages_and_what_is_not_published_stays_a_name():
    text = (
        "[zones](../patterns/11_zones.ipynb#x), [limits](limits.md), [api](api/smc_ml.md), "
        "[stage](../pipeline/10_collect.ipynb), [web](https://example.invalid), `[a](b.md)`-like"
    )
    _, page = written([new_markdown_cell(text)])
    assert "[zones](patterns/11_zones.md#x)" in page and "[limits](limits.md)" in page
    assert "[api](api/smc_ml.md)" in page and "stage," in page and "10_collect" not in page
    assert "[web](https://example.invalid)" in page


def test_a_page_shows_code_without_directives_and_leaves_hidden_cells_out():
    cells = [
        new_code_cell("#| default_exp x"),
        new_code_cell("#| hide\nsecret = 1"),
        new_code_cell("#| export\ndef f():\n    return 1"),
        new_code_cell("\n".join(f"a{row} = {row}" for row in range(20))),
    ]
    _, page = written(cells, fold=True)
    assert "secret" not in page and "#|" not in page and "```python\ndef f():" in page
    assert '??? abstract "Code"\n\n    ```python\n    a0 = 0' in page


def test_outputs_are_escaped_framed_or_kept_as_files():
    plotly = {"data": [{"name": "</script><b>"}], "layout": {}}
    outputs = [
        new_output("stream", name="stdout", text="1 < 2\x1b[0m"),
        new_output("stream", name="stderr", text="a warning"),
        new_output("display_data", {"image/png": "iVBORw0KGgo=", "text/plain": "figure"}),
        new_output("display_data", {"text/html": "<style scoped>x</style><table></table>"}),
        new_output("display_data", {docs.PLOTLY: plotly, "text/plain": "figure"}),
    ]
    page, text = written([new_code_cell("f()", outputs=outputs)])
    assert "<pre>1 &lt; 2</pre>" in text and "a warning" not in text
    assert "![](01_two_clocks_files/01_two_clocks-00-2.png)" in text
    assert page.files["01_two_clocks-00-2.png"].startswith(b"\x89PNG")
    assert '<div class="output"><table></table></div>' in text
    assert "</script><b>" not in text and 'src="assets/plotly.min.js"' in text


def test_a_notebook_runs_again_only_when_something_below_it_changes(monkeypatch, tmp_path):
    path = ROOT / "nbs/patterns/03_swings.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    before = docs.key_of(path, cells)
    prose = [cell for cell in cells if cell.cell_type == "code"] + [new_markdown_cell("other words")]
    assert docs.key_of(path, prose) == before
    assert docs.key_of(path, [*cells, new_code_cell("1 + 1")]) != before


def test_the_key_knows_the_data_behind_a_notebook(monkeypatch, tmp_path):
    monkeypatch.setenv("SMC_ML_MARKET", str(tmp_path))
    there = docs.data_behind('os.environ.get("SMC_ML_MARKET")')
    monkeypatch.setenv("SMC_ML_MARKET", str(tmp_path / "nowhere"))
    assert docs.data_behind('os.environ.get("SMC_ML_MARKET")') != there
    assert docs.data_behind("1 + 1") == []


def test_the_api_shows_signatures_with_their_comments():
    pages = api_pages(ROOT / "smc_ml")
    page = pages["api/smc_ml.patterns.md"]
    assert "### `detect_patterns`" in page and "(../patterns/13_detection.md)" in page
    stream = page[page.index("### `PatternStream`") :]
    assert "timeframe: str | None = None,  # None: read from the table that is fed first" in stream
    for text in pages.values():
        for link in re.findall(r"\]\((\.\./[^)]+)\.md\)", text):
            assert (ROOT / "nbs" / link[3:]).with_suffix(".ipynb").is_file(), link


def test_links_that_lead_nowhere_and_requests_outward_are_found(tmp_path):
    (tmp_path / "b.html").write_text('<h1 id="here">b</h1>')
    (tmp_path / "a.html").write_text(
        '<a href="b.html#here">b</a><a href="c.html">c</a><a href="b.html#there">b</a>'
        '<script src="https://example.invalid/x.js"></script><a href="https://example.invalid">web</a>'
    )
    wrong = docs.wrong_links(tmp_path)
    assert len(wrong) == 3
    assert any("fetch https://example.invalid/x.js" in fault for fault in wrong)
    assert any("c.html, which is not there" in fault for fault in wrong)
    assert any("b.html#there, which has no such place" in fault for fault in wrong)


def test_every_page_of_the_tree_is_there():
    tree = (ROOT / "tools/docs.yml").read_text()
    for name in re.findall(r"([\w.]+)\.md\b", tree[tree.index("nav:") :]):
        known = {docs.page_of(path).stem for path in [*(ROOT / "nbs/docs").iterdir()] if docs.page_of(path)}
        assert name in known | {"library", "readme", "contributing", "changelog"}, name


@pytest.mark.slow
def test_the_site_is_built_whole_and_offline():
    "Runs what is stale of nbs/docs, and looks at every page for links that lead nowhere."
    command = [sys.executable, "tools/docs.py", "nbs/docs"]
    subprocess.run(["make", "_docs/.venv/installed"], cwd=ROOT, check=True)
    subprocess.run(command, cwd=ROOT, check=True, env=dict(os.environ))
    site = ROOT / "_docs/site"
    start = (site / "00_five_minutes.html").read_text()
    assert "Plotly.newPlot" in start and '<table border="1" class="dataframe">' in start
    assert (site / "01_two_clocks_files").is_dir() and (site / "search.js").is_file()
    assert "unpkg" not in start and "iframe_worker.js" in start
