"""Pages of the report in a browser: nothing overflows a phone, no request leaves, tables filter and save."""

import base64
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from conftest import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from smc_ml.figures.canvas import png
from smc_ml.figures.models import accuracy_plot
from smc_ml.reports.executed import Stage
from smc_ml.reports.measures import measures_table
from smc_ml.reports.openings import read_openings
from smc_ml.reports.pages import page, write_plotly

STAGES = [Stage(name, name.title(), "Reads `artifacts/candles/`, writes.") for name in read_openings(ROOT)]
WORDS = pd.DataFrame(
    {"name": [f"strategy {row:02d} above 0.1 R" for row in range(60)], "value": range(60)}
)  # longer than a screen
ODD = pd.DataFrame(
    {"trades": range(20), "mean_r": [row / 10 - 1 for row in range(20)]},
    index=pd.Index(["=HYPERLINK(1)", "-x", "@y", *(f"s{row}" for row in range(17))], name="strategy"),
)
LOOK = """<script>
const told = {}, wait = ms => new Promise(done => setTimeout(done, ms));
async function look(name) {
  const frame = document.createElement("iframe");
  frame.style.cssText = "width:400px;height:800px;border:0";
  frame.src = name;
  const loaded = new Promise(done => frame.addEventListener("load", done));
  document.body.append(frame);
  await loaded;
  const page = frame.contentDocument, view = frame.contentWindow;
  const before = (one, two) => Boolean(one.compareDocumentPosition(two) & Node.DOCUMENT_POSITION_FOLLOWING);
  const [answer, picture, code] = [".answer", "img", "details.code"].map(part => page.querySelector(part));
  const found = {
    wide: page.documentElement.scrollWidth,
    far: view.performance.getEntriesByType("resource").map(one => one.name)
      .filter(one => !/^(file|data|blob):/.test(one)),
    ordered: before(answer, picture) && before(picture, code),
    toggles: page.querySelectorAll("details").length, open: code.open,
    titles: page.querySelectorAll("h1").length,
    unlabelled: [...page.querySelectorAll("input, button")].filter(one =>
      !one.getAttribute("aria-label") && !one.textContent.trim()).length,
  };
  const [plain, odd] = [...page.querySelectorAll("table")];
  const box = plain.closest(".scroll, .sorted").previousElementSibling;
  const input = box.querySelector("input");
  const rows = () => [...plain.tBodies[0].rows].filter(row => !row.hidden);
  input.value = "above 4";
  input.dispatchEvent(new view.Event("input"));
  found.filtered = [rows().length, box.querySelector("[role=status]").textContent];
  input.value = "";
  input.dispatchEvent(new view.Event("input"));
  plain.querySelectorAll("th button")[2].click();
  found.first = rows()[0].cells[2].textContent;
  found.csv = view.smcTables.csv(odd);
  told[name] = found;
  frame.remove();
}
(async () => {
  for (const name of NAMES) await look(name);
  const said = document.createElement("pre");
  said.id = "told";
  said.textContent = JSON.stringify(told);
  document.body.append(said);
})();
</script>"""


def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no Chromium is at hand")
    return found


def executed(path: Path) -> Path:
    "A notebook as a stage leaves it: text, a picture, a long table, one of measures."
    scores = pd.DataFrame(
        {
            "model": ["xgboost"],
            "accuracy": [0.56],
            "accuracy_low": [0.55],
            "accuracy_high": [0.58],
            "majority_rate": [0.54],
        }
    )
    picture = base64.b64encode(png(accuracy_plot(scores))).decode()
    outputs = [
        new_output("stream", name="stdout", text="A sentence. " * 30),
        new_output("display_data", {"image/png": picture}),
        new_output("display_data", {"text/html": WORDS.to_html()}),
        new_output("display_data", {"text/html": measures_table(ODD).text}),
    ]
    cells = [
        new_markdown_cell("# Count\n\n> Reads, writes.\n"),
        new_code_cell("a_long_name = " + "1 + " * 60 + "1"),
    ]
    cells[1].outputs, cells[1].execution_count = outputs, 1
    nbformat.write(new_notebook(cells=cells), path)
    return path


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> tuple[dict, str]:
    "What the browser found on every page at the width of a phone, and what it complained of."
    browser, folder = chromium(), tmp_path_factory.mktemp("pages")
    write_plotly(folder / "plotly.min.js")
    openings = read_openings(ROOT)
    for stage in STAGES:
        notebook = executed(folder / f"10_{stage.name}.ipynb")
        banner = "Simulated candles: nothing here says anything about a real market."
        page(notebook, folder / f"{stage.name}.html", STAGES, opening=openings[stage.name], banner=banner)
    names = json.dumps([f"{stage.name}.html" for stage in STAGES])
    (folder / "look.html").write_text(f"<body>{LOOK.replace('NAMES', names)}</body>", encoding="utf-8")
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--allow-file-access-from-files",
        "--enable-logging=stderr",
    ]
    options += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=60000", "--dump-dom"]
    done = subprocess.run(
        [browser, *options, (folder / "look.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stderr[-800:]
    return json.loads(html.unescape(found[1])), done.stderr


def test_every_stage_has_a_page_that_opens_with_its_answer_and_ends_with_its_code(seen):
    pages, _ = seen
    assert len(pages) == len(STAGES) >= 13
    for name, found in pages.items():
        assert found["ordered"] and not found["open"], name
        assert (found["titles"], found["toggles"], found["unlabelled"]) == (1, 1, 0), name


def test_nothing_overflows_a_phone_and_no_request_leaves(seen):
    pages, complaints = seen
    assert {name: found["wide"] for name, found in pages.items() if found["wide"] > 400} == {}
    assert [found["far"] for found in pages.values() if found["far"]] == []
    assert "CONSOLE" not in complaints, complaints[-800:]


def test_long_tables_filter_and_sort(seen):
    for found in seen[0].values():
        assert found["filtered"] == [15, "15 of 60 rows"]  # by words
        assert found["first"] == "59"  # numbers: the largest first


def test_what_a_spreadsheet_would_run_is_downloaded_as_text(seen):
    lines = next(iter(seen[0].values()))["csv"].splitlines()
    assert lines[0] == "strategy,trades,expectancy after costs"
    assert lines[1:4] == ['"\'=HYPERLINK(1)",0,-1.0', '"\'-x",1,-0.9', '"\'@y",2,-0.8']
    assert lines[4] == "s0,3,-0.7"  # a number stays one
