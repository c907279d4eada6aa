"""The candle chart in a browser: it reacts, it asks nobody, and its replay knows nothing of the future."""

import io
import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from browser import Browser

from smc_ml.candles import resample
from smc_ml.charts.chart import Chart
from smc_ml.charts.config import ChartConfig
from smc_ml.patterns.config import PatternConfig
from smc_ml.patterns.detection import detect_timeframes
from smc_ml.simulation.config import SimulationConfig
from smc_ml.simulation.market import simulate_market

FRAMES = ("5m", "15m", "1h")
NOW = pd.Timestamp("2024-01-05T14:10Z")  # within a candle of 15 minutes, and one of an hour
CONFIG = ChartConfig(sessions=True, visible=160)


def found_in(candles: pd.DataFrame) -> pd.DataFrame:
    "Patterns of all three timeframes."
    frames = {"5m": candles} | {name: resample(candles, "5m", name) for name in FRAMES[1:]}
    return detect_timeframes(frames, PatternConfig(timeframes=FRAMES))


def trades_of(candles: pd.DataFrame) -> pd.DataFrame:
    "A trade that is over at NOW, one that is open, one that has not begun, and one that leaves right then."
    entered = NOW - pd.to_timedelta([600, 90, -30, 120], "min")
    left = entered + pd.to_timedelta([60, 200, 60, 120], "min")
    entry, gone = (candles["open"].reindex(times).to_numpy() for times in (entered, left))
    trades = pd.DataFrame({"entry_at": entered, "entry": entry, "exit_at": left, "exit_price": gone})
    trades = trades.assign(direction=1, stop=entry * 0.99, target=entry * 1.02, kind="order_block")
    return trades.assign(
        exit_reason=["target", "stop", "target", "timeout"],
        realised_r=[1.5, -1.0, 2.0, 0.3],
        top=entry * 0.998,
        bottom=entry * 0.996,
        known_at=entered - pd.Timedelta("50min"),
        formed_at=entered - pd.Timedelta("100min"),
    )


@pytest.fixture(scope="module")
def candles() -> pd.DataFrame:
    return simulate_market(["SIM-A"], "2024-01-01", "2024-01-07", SimulationConfig(seed=5))["SIM-A"].candles


@pytest.fixture(scope="module")
def whole(candles) -> Chart:
    "All candles, with all that is known in the end."
    return Chart(candles, found_in(candles), trades=trades_of(candles), timeframe="15m", config=CONFIG)


@pytest.fixture(scope="module")
def then(candles) -> Chart:
    "What one had at NOW: fewer candles, and what is found in them."
    seen = candles[candles.index + pd.Timedelta("5min") <= NOW]
    trades = trades_of(candles)
    trades = trades[trades["entry_at"] < NOW]
    still_open = (trades["exit_at"] > NOW) | (
        (trades["exit_at"] == NOW) & (trades["exit_reason"] == "timeout")
    )
    trades.loc[still_open, ["exit_at", "exit_price", "exit_reason", "realised_r"]] = [pd.NaT, None, "", None]
    return Chart(seen, found_in(seen), trades=trades, timeframe="15m", config=CONFIG)


@pytest.fixture(scope="module")
def browser():
    with Browser() as opened:
        yield opened


@pytest.fixture
def shown(browser, tmp_path):
    "Opens charts, and closes their pages at the end."
    pages = []

    def show(chart: Chart, *changes: tuple[str, str], **options):
        html = chart.page()
        for old, new in changes:
            assert html.count(old) == 1, old
            html = html.replace(old, new)
        path = tmp_path / f"{len(pages)}.html"
        path.write_text(html, encoding="utf-8")
        page = browser.open(path, **options)
        pages.append(page)
        page.wait_for("window.chart && chart.dataset.ready === 'yes'")
        page.settle()
        return page

    yield show
    for page in pages:
        page.close()


def state(page) -> dict:
    "All that a page shows."
    page.settle()
    return json.loads(page.evaluate("JSON.stringify(chart.smc.state())"))


def replayed(page, frame: str = "15m") -> tuple[dict, bytes]:
    "State and picture of a replay at NOW."
    page.evaluate(f"chart.smc.show(chart.smc.symbol, '{frame}')")
    page.evaluate(f"chart.smc.at({int(NOW.timestamp())})")
    return state(page), page.screenshot(of=".smc-pane")


@pytest.fixture(scope="module")
def past(browser, then, tmp_path_factory) -> dict:
    "The state of what one had then."
    page = browser.open(then.save(tmp_path_factory.mktemp("then") / "then.html"))
    page.wait_for("window.chart && chart.dataset.ready === 'yes'")
    try:
        return replayed(page)[0]
    finally:
        page.close()


LATER = """(() => {
  const seen = new Set(), now = chart.smc.view.now, found = [];
  const walk = (value, path, depth) => {
    if (typeof value === "number") { if (value > now && value < now + 864000) found.push(path); return; }
    if (value === null || typeof value !== "object" || value instanceof Node) return;
    if (seen.has(value) || depth > 14) return;
    seen.add(value);
    if (ArrayBuffer.isView(value)) { for (const one of value) walk(one, path, depth + 1); return; }
    const parts = value instanceof Map ? value : Object.entries(value);
    for (const [name, one] of parts) walk(one, path + "." + name, depth + 1);
  };
  walk(chart.smc, "chart", 0);
  return found.slice(0, 5);
})()"""


@pytest.mark.parametrize("frame", ["5m", "15m", "1h"])
def test_a_replay_is_the_chart_that_one_had_then(shown, whole, then, frame):
    past, picture = replayed(shown(then), frame)
    page = shown(whole)
    seen, replay = replayed(page, frame)
    assert seen == past and seen["now"] == NOW.timestamp() and len(seen["patterns"]) > 3
    assert np.array_equal(*(plt.imread(io.BytesIO(png)) for png in (replay, picture)))
    assert page.evaluate(LATER) == []
    for selector in (".smc-trades", ".smc-bar", ".smc-legend"):
        assert "2024-01-06" not in page.evaluate(f"document.querySelector('{selector}').textContent")


@pytest.mark.parametrize(
    "change",
    [
        ("open = p.ended[i] > this.now", "open = p.ended[i] > 4e9"),
        ("trade.exit_seen <= this.now) return trade", "true) return trade"),
        ("trade => trade.entry_seen <= this.now", "() => true"),
        ("Math.min(frame.first[at + 1], seen)", "frame.first[at + 1]"),
        (
            "searchLeft(store.patterns.known, this.now + 1",
            "searchLeft(store.patterns.known, this.now + 864000",
        ),
    ],
    ids=["ends of zones", "ends of trades", "later trades", "the candle of now", "later patterns"],
)
def test_a_replay_that_leaks_is_found_out(shown, whole, past, change):
    assert replayed(shown(whole, change))[0] != past


def test_what_is_reachable_later_is_found_out(shown, whole):
    page = shown(whole)
    replayed(page)
    assert page.evaluate(LATER) == []
    page.evaluate("chart.smc.leak = {deep: [chart.smc.view.now + 300]}")
    assert page.evaluate(LATER) == ["chart.leak.deep.0"]


def test_steps_lead_to_where_a_jump_leads(shown, whole):
    page = shown(whole)
    jumped, _ = replayed(page)
    page.evaluate(f"chart.smc.at({int(NOW.timestamp()) - 900})")
    page.evaluate("chart.smc.pane.focus()")
    for _ in range(4):
        page.key("ArrowRight")
    page.key("ArrowLeft")
    stepped = state(page)
    different = {name for name in jumped if jumped[name] != stepped[name]}
    assert different <= {"range", "price", "patterns", "count", "sessions"}  # what depends on where one looks
    page.evaluate("chart.smc.latest()")
    assert state(page) == jumped
    page.key("Escape")
    assert state(page)["candles"] > jumped["candles"] and state(page)["clock"] == ""


def test_the_chart_answers_wheel_mouse_and_keys(shown, whole):
    page = shown(whole)
    x, y = page.place(".smc-pane")
    before = state(page)
    page.wheel(x, y, -240)
    zoomed = state(page)
    width = {name: one["range"]["to"] - one["range"]["from"] for name, one in (("b", before), ("z", zoomed))}
    assert width["z"] < width["b"]
    page.hover(x, y)
    under = state(page)
    assert under["legend"] != before["legend"] and under["legend"].startswith("15m O ")
    page.evaluate("document.querySelector('[title=\"order block\"]').click()")
    kinds = {one["kind"] for one in before["patterns"]} - {one["kind"] for one in state(page)["patterns"]}
    assert kinds == {5}
    page.evaluate("document.querySelector('tbody tr:nth-child(2)').focus()")
    page.key("Enter")
    focused = page.evaluate("chart.smc.focus")
    middle = page.evaluate(
        "chart.smc.view.bar(chart.smc.trades.find(t => t.id === chart.smc.focus).entry_at)"
    )
    assert focused is not None and state(page)["range"]["from"] < middle < state(page)["range"]["to"]
    assert page.errors == [] and page.leaving() == []


def test_it_fits_a_phone_and_the_dark(shown, whole):
    page = shown(whole, width=400, height=800, dark=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert page.evaluate("chart.dataset.theme") == "dark"
    page.evaluate("chart.smc.turn()")
    assert page.evaluate("chart.dataset.theme") == "light" and page.errors == []


def test_labels_do_not_overlap(shown, whole):
    page = shown(whole)
    boxes = page.evaluate("chart.smc.drawing.labels.taken")
    assert len(boxes) > 10
    for i, one in enumerate(boxes):
        for other in boxes[:i]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_the_table_downloads_no_formula(shown, candles):
    trades = trades_of(candles).assign(exit_reason="=1+1", kind="@evil,<b>")
    page = shown(Chart(candles, trades=trades))
    text = page.evaluate("chart.smc.table.csv()")
    assert "'=1+1" in text and '"\'@evil,<b>"' in text and ",=" not in text
    assert page.evaluate("document.querySelectorAll('tbody b').length") == 0
