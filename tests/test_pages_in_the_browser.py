"""Pages of the report in a browser: nothing overflows a phone, no request leaves, tables filter and save."""

import base64
import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from browser import Browser, Page
from conftest import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from smc_ml.charts.chart import Chart
from smc_ml.evaluation.verdict import Verdict
from smc_ml.figures.account import equity_figure
from smc_ml.figures.canvas import png
from smc_ml.figures.models import accuracy_plot
from smc_ml.reports.compare import ComparedRun, comparison_html
from smc_ml.reports.executed import Stage
from smc_ml.reports.index import build_report
from smc_ml.reports.measures import measures_table
from smc_ml.reports.openings import read_openings
from smc_ml.reports.pages import page, write_page, write_plotly
from smc_ml.reports.run import RunSummary
from smc_ml.reports.setups_page import SETUPS, setups_html
from smc_ml.reports.tear_sheet_page import TEAR_SHEET, Beside, tear_sheet_html
from smc_ml.trading.account import Backtest
from smc_ml.trading.config import SCENARIOS
from smc_ml.trading.declined import SIGNAL_REASONS
from smc_ml.trading.results import interval_table
from smc_ml.trading.setups import setup_cells, setup_facts

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


TIMES = pd.date_range("2024-01-01", periods=24 * 90, freq="1h", tz="UTC")


def _candles() -> pd.DataFrame:
    "A random walk by the hour."
    draw = np.random.default_rng(11)
    close = pd.Series(100 * np.exp(draw.normal(0, 0.004, len(TIMES)).cumsum()), TIMES)
    opened = close.shift(fill_value=100.0)
    reach = 1 + np.abs(draw.normal(0, 0.002, len(TIMES)))
    high, low = np.maximum(opened, close) * reach, np.minimum(opened, close) / reach
    return pd.DataFrame({"open": opened, "high": high, "low": low, "close": close, "volume": 1.0})


def _account(candles: pd.DataFrame) -> Backtest:
    "An account of trades on these candles, and its equity."
    rows = np.arange(20, 2000, 9)
    entry = candles["open"].to_numpy()[rows]
    trades = pd.DataFrame({"entry_at": TIMES[rows], "exit_at": TIMES[rows + 3], "entry": entry})
    trades = trades.assign(time=trades["entry_at"], symbol="SIM-A", timeframe="1h", risk=0.01 * entry)
    trades["event_id"], trades["direction"] = np.arange(len(rows)), np.where(rows % 2, 1, -1)
    trades["kind"] = np.where(rows % 5 < 3, "order_block", "fair_value_gap")
    trades["exit_price"], trades["stop"] = candles["open"].to_numpy()[rows + 3], entry * 0.99
    moved = (trades["exit_price"] - entry) * trades["direction"] / trades["risk"]
    trades = trades.assign(target=entry * 1.015, gross_r=moved, cost_r=0.1, realised_r=moved - 0.1)
    trades["exit_reason"] = np.where(moved > 0, "target", "stop")
    trades = trades.assign(mfe_r=moved.clip(lower=0), mae_r=moved.clip(upper=0), won=moved > 0.1)
    trades = trades.assign(profit=100 * trades["realised_r"], fees=8.0, slippage=2.0, funding=0.0)
    trades = trades.assign(funding_r=0.0, spread_known=1.0, funding_known=1.0)
    gained = trades.set_index("exit_at")["profit"].reindex(TIMES).fillna(0.0)
    equity = pd.DataFrame({"equity": 100_000 + gained.cumsum(), "exposure": 0.3})
    equity["drawdown"] = equity["equity"] / equity["equity"].cummax() - 1
    return Backtest(trades, equity.assign(buy_and_hold=1000 * candles["close"]))


def _summary(account: Backtest, candles: pd.DataFrame) -> RunSummary:
    "What the first page says, with a chart of candles and trades."
    scores = {"model": ["xgboost"], "majority_rate": [0.541]}
    for name, value in {"accuracy": 0.56, "auc": 0.58, "log_loss_gain": 0.003}.items():
        scores |= {name: [value], f"{name}_low": [value * 0.98], f"{name}_high": [value * 1.02]}
    span = {"symbol": "SIM-A", "source": "simulator", "timeframe": "1h", "rows": len(TIMES)}
    span |= {"first": TIMES[0], "last": TIMES[-1], "content": "cd" * 32}
    result = interval_table({"expected": account}).loc["expected"].to_dict()
    result |= {"buy_and_hold_return": 0.1, "fee_rate": 0.0004, "slippage_rate": 0.0001}
    made = RunSummary(
        verdict=Verdict("unknown", "This much data cannot tell.", "Too few trades.", "cannot be told"),
        simulated=True,
        backtest=result,
        results="0123456789abcdef",
        lock_hash="ab" * 32,
        scores=pd.DataFrame(scores),
        spans=pd.DataFrame([span]),
        parameters={"collect": {"days": 90, "symbols": ["SIM-A"]}},
    )
    equity = account.equity["equity"]
    made.figures.update(
        chart=Chart(candles, trades=account.trades, timeframe="1h"),
        accuracy=accuracy_plot(made.scores),
        equity=equity_figure(equity),
    )
    return made


def _beside(account: Backtest) -> Beside:
    "Its cases, and its signals, half of which were not taken."
    cases = dict.fromkeys(SCENARIOS, account)
    signals = pd.concat([account.trades, account.trades.assign(expected_r=-0.1)], ignore_index=True)
    reason = np.where(signals["expected_r"].isna(), SIGNAL_REASONS[0], SIGNAL_REASONS[1])
    signals = signals.assign(reason=pd.Categorical(reason, SIGNAL_REASONS)).fillna({"expected_r": 0.2})
    return Beside(interval_table(cases), {case: one.equity for case, one in cases.items()}, signals)


def _compared(name: str, account: Backtest, mean: float) -> ComparedRun:
    headline = {"auc": 0.6, "net_r": mean, "net_r_low": mean - 0.1, "net_r_high": mean + 0.1, "trades": 200}
    daily = account.equity["equity"].resample("1D").last()
    return ComparedRun(name, "ab" * 20, {"labels.barriers.target_r": f"{mean:g}"}, headline, {}, daily)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> dict[str, Path]:
    "The pages of a run that have no stage of their own, by name."
    folder = tmp_path_factory.mktemp("run")
    candles = _candles()
    account = _account(candles)
    judged = {"trials": 24, "independent_maximum": 2.0, "independent_dsr": 0.4, "pbo": 0.3}
    cells = setup_cells(setup_facts(account.trades), 2, 200)
    others = {
        SETUPS: lambda stages: setups_html(cells, stages, "Simulated"),
        TEAR_SHEET: lambda stages: tear_sheet_html(
            account, judged, 1e5, None, _beside(account), stages, "Simulated"
        ),
    }
    build_report([executed(folder / "10_count.ipynb")], _summary(account, candles), folder, others=others)
    runs = [_compared("workspace", account, 0.1), _compared("target_r=2", account, 0.2)]
    write_page(comparison_html(runs), folder / "compare.html")
    pages = {name: folder / "pages" / f"{name}.html" for name in ("setups", "tear_sheet")}
    return {"index": folder / "index.html", "compare": folder / "compare.html"} | pages


@pytest.fixture(scope="module")
def browser():
    chromium()
    with Browser() as opened:
        yield opened


SIZES = ((400, True), (1200, False))  # a phone in the dark, a desk by day


@pytest.fixture(scope="module")
def looked(browser, run):
    "A function that brings a page of one of the sizes to the front; each is opened once."
    pages: dict[tuple[str, int], Page] = {}

    def look(name: str, width: int) -> Page:
        if (name, width) not in pages:
            pages[name, width] = browser.open(run[name], width, 900, dict(SIZES)[width])
        pages[name, width].send("Page.bringToFront")
        return pages[name, width]

    return look


@pytest.mark.parametrize("width", dict(SIZES))
def test_pages_of_a_run_fit_their_screen_and_ask_nobody(run, looked, width):
    for name in run:
        shown = looked(name, width)
        shown.settle()
        assert shown.evaluate("document.documentElement.scrollWidth") <= width, (name, width)
        assert shown.errors == [] and shown.leaving() == [], (name, width)
        ground = re.findall(r"\d+", shown.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert (max(map(int, ground[:3])) < 80) == (width == 400), f"{name}: dark where it was asked for"


COLUMN = """(number => {
  const table = document.querySelector("table[data-keyed]"), head = table.tHead.rows[0].cells[number];
  const keys = [...table.tBodies[0].rows].map(row => row.cells[number].dataset.key).filter(key => key);
  return [head.getAttribute("aria-sort"), keys];
})"""


@pytest.mark.parametrize("name", ["setups", "tear_sheet", "compare"])
def test_a_press_on_a_heading_sorts_the_table(looked, name):
    shown, head = looked(name, 1200), "table[data-keyed] thead th:nth-child({}) button"
    number = 1 + (name == "setups")
    orders = []
    for _ in range(2):
        shown.click(head.format(number + 1))
        orders.append(shown.evaluate(f"{COLUMN}({number})"))
    assert {order for order, _ in orders} == {"ascending", "descending"}
    for order, keys in orders:
        try:
            values = [float(key) for key in keys]
        except ValueError:
            values = keys
        assert len(set(keys)) > 1 and values == sorted(values, reverse=order == "descending"), order


def _range(shown: Page) -> tuple[float, float]:
    "The first and last bar that the chart of the index shows."
    shown.wait_for("document.querySelector('.smc-chart')?.dataset.ready === 'yes'")
    shown.settle()
    seen = json.loads(
        shown.evaluate("JSON.stringify(document.querySelector('.smc-chart').smc.state().range)")
    )
    return seen["from"], seen["to"]


def test_the_chart_of_the_index_answers_the_wheel_and_a_click(looked):
    shown = looked("index", 1200)
    first, last = _range(shown)
    shown.evaluate("document.querySelector('.smc-pane').scrollIntoView({block: 'center'})")
    shown.wheel(*shown.place(".smc-pane"), -240)
    nearer = _range(shown)
    assert nearer[1] - nearer[0] < last - first
    shown.evaluate("document.querySelector('.smc-pages, .smc-panel, .smc-bar').scrollIntoView()")
    shown.evaluate("document.querySelector('.smc-chart tbody tr:nth-child(2)').click()")
    assert shown.evaluate("document.querySelector('.smc-chart').smc.focus") is not None
    assert _range(shown) != nearer and shown.errors == []


def _drag(shown: Page, x: float, y: float, by: float) -> None:
    "A finger that goes down, moves and leaves."
    for kind, points in (
        ("touchStart", [x]),
        *(("touchMove", [x + by * step / 6]) for step in range(1, 7)),
        ("touchEnd", []),
    ):
        shown.send("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": at, "y": y} for at in points])


def test_a_finger_moves_the_chart_and_sorts_a_table(looked):
    shown = looked("index", 400)
    shown.send("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=2)
    before = _range(shown)
    shown.evaluate("document.querySelector('.smc-pane').scrollIntoView({block: 'center'})")
    _drag(shown, *shown.place(".smc-pane"), 150)
    moved = _range(shown)
    assert moved[0] < before[0] and abs((moved[1] - moved[0]) - (before[1] - before[0])) < 2
    shown = looked("tear_sheet", 400)
    shown.send("Emulation.setTouchEmulationEnabled", enabled=True, maxTouchPoints=2)
    head = "table[data-name=trades] thead th:first-child button"
    shown.evaluate(f"document.querySelector('{head}').scrollIntoView({{block: 'center', inline: 'center'}})")
    _drag(shown, *shown.place(head), 0)
    order = "document.querySelector('table[data-name=trades] th').getAttribute('aria-sort')"
    shown.wait_for(f"{order} === 'ascending'", 5)  # it came by the last trade first
    assert shown.errors == []


def test_on_paper_every_page_is_whole(looked):
    for name in ("index", "setups", "tear_sheet", "compare"):
        shown = looked(name, 1200)
        paper = base64.b64decode(shown.send("Page.printToPDF", printBackground=True)["data"])
        assert paper.startswith(b"%PDF") and paper.count(b"/Type /Page\n") >= 1 + (name == "tear_sheet"), name
        shown.send("Emulation.setEmulatedMedia", media="print")
        hidden = "[...document.querySelectorAll('header.top, .table-tools, .smc-bar')]"
        assert shown.evaluate(f"{hidden}.every(one => getComputedStyle(one).display === 'none')"), name
        cut = "[...document.querySelectorAll('.sorted, .scroll')]"
        assert shown.evaluate(f"{cut}.every(one => one.scrollHeight <= one.clientHeight + 1)"), name
        shown.send("Emulation.setEmulatedMedia", media="")
