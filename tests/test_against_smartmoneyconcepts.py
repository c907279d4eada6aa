"""A second opinion: what smartmoneyconcepts finds on real candles is ours,
and every difference is one of those listed in nbs/explore."""

import json
from typing import Any

import pandas as pd
import pytest
from conftest import ROOT

from smc_ml.candles import validate_candles

NOTEBOOK = ROOT / "nbs" / "explore" / "02_against_smartmoneyconcepts.ipynb"
STRETCHES = {
    "EURUSD, narrow swings": (0, None, 5),
    "EURUSD, wide swings": (0, 16_000, 20),
    "BTCUSDT in winter": (1000, 13_000, 5),
    "BTCUSDT in August": (65_005, 77_005, 10),
    "BTCUSDT in autumn": (85_000, 95_000, 20),
}  # rows, candles on each side of a swing


@pytest.fixture(scope="module")
def notebook() -> dict[str, Any]:
    "What the notebook's cells tagged `comparison` define."
    names: dict[str, Any] = {}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if "comparison" in cell["metadata"].get("tags", []):
            exec("".join(cell["source"]), names)
    return names


@pytest.fixture(scope="module")
def eurusd(market) -> pd.DataFrame:
    "A year of 15m candles on the broker's clock, three hours ahead of UTC in summer; volume in ticks."
    table = pd.read_parquet(market / "EURUSD_15m_mt5_2022-10_2023-10.parquet")
    opens = (
        pd.DatetimeIndex(table["timestamp_broker_naive"], name="open_time").as_unit("ns").tz_localize("UTC")
    )
    columns = ["open", "high", "low", "close", "tick_volume"]
    return validate_candles(
        table[columns].astype(float).rename(columns={"tick_volume": "volume"}).set_index(opens),
        "15m",
        allow_gaps=True,
    )


@pytest.fixture(scope="module")
def found(notebook, eurusd, bitcoin) -> pd.DataFrame:
    "Every pattern of either side with the name of its difference, on every stretch."
    parts = {
        name: notebook["compare_all"](eurusd.iloc[start:stop], "15m", length)
        if name.startswith("EURUSD")
        else notebook["compare_all"](bitcoin.iloc[start:stop], "5m", length)
        for name, (start, stop, length) in STRETCHES.items()
    }
    parts["EURUSD in summer"] = notebook["compare_sessions"](eurusd.loc["2023-05":"2023-06"], 3).assign(
        comparison="sessions"
    )
    parts["BTCUSDT in January"] = notebook["compare_sessions"](bitcoin.iloc[1000:5000]).assign(
        comparison="sessions"
    )
    parts["by hand"] = notebook["compare_at_once"]().assign(comparison="at once")
    return pd.concat(parts, names=["stretch"]).reset_index("stretch")


def test_every_difference_is_in_the_table(notebook, found):
    unlisted = found[~found["difference"].isin({"same", *notebook["DIFFERENCES"].index})]
    assert "unexplained" not in notebook["DIFFERENCES"].index and notebook["DIFFERENCES"].index.is_unique
    assert unlisted.empty, (
        unlisted.groupby(["stretch", "comparison", "difference"])["row"].agg(["size", "first"]).to_string()
    )


def test_every_line_of_the_table_is_seen(notebook, found):
    assert set(notebook["DIFFERENCES"].index) <= set(found["difference"])


@pytest.mark.parametrize("stretch", STRETCHES)
def test_the_two_agree_on_most_of_what_both_look_at(found, stretch):
    counts = found[found["stretch"] == stretch].groupby("comparison")["difference"].value_counts()
    assert (
        counts["gaps", "same"] > 2000
        and counts["swings", "same"] > 200
        and counts["breaks", "same"] > 80
        and counts["blocks", "same"] > 10
    )
    for comparison, missing in {
        "gaps": ["first candles"],
        "breaks": ["newer swing first", "level in single precision", "swing at either end"],
        "blocks": ["swing at either end"],
    }.items():
        theirs_alone = sum(counts.get((comparison, name), 0) for name in missing)
        assert theirs_alone < 0.1 * counts[comparison, "same"], comparison


def test_most_order_blocks_of_theirs_are_gone_in_the_end(found):
    blocks = found.loc[found["comparison"] == "blocks", "difference"].value_counts()
    assert blocks["block deleted"] > 5 * blocks["same"]


@pytest.mark.parametrize(
    ("comparison", "argument", "column"),
    [
        ("compare_gaps", None, "formed_at"),
        ("compare_gaps", None, "touched_at"),
        ("compare_gaps", None, "top"),
        ("compare_swings", 5, "formed_at"),
        ("compare_previous", "day", "level"),
    ],
)
def test_a_pattern_of_ours_that_is_off_by_one_is_noticed(
    notebook, bitcoin, monkeypatch, comparison, argument, column
):
    detect = notebook["detect_patterns"]

    def off(*arguments):
        table = detect(*arguments)
        return table.assign(
            **{
                column: table[column] + pd.Timedelta("5min")
                if column.endswith("_at")
                else table[column].shift(1)
            }
        )

    monkeypatch.setitem(notebook, "detect_patterns", off)
    wrong = notebook[comparison](bitcoin.iloc[:3000], "5m", *([argument] if argument else []))[
        "difference"
    ].eq("unexplained")
    assert wrong.mean() > 0.3


@pytest.mark.parametrize(
    ("detector", "comparison", "field"),
    [("our_breaks", "compare_breaks", name) for name in ("known", "formed", "level", "direction")]
    + [("our_blocks", "compare_blocks", name) for name in ("known", "formed", "top", "bottom")],
)
def test_a_break_or_block_of_ours_that_is_off_is_noticed(
    notebook, bitcoin, monkeypatch, detector, comparison, field
):
    detect = notebook[detector]

    def off(*arguments):
        events, *rest = found if isinstance(found := detect(*arguments), tuple) else (found,)
        events[field][20] += 1 if field != "direction" else -2 * events[field][20]
        return (events, *rest) if rest else events

    monkeypatch.setitem(notebook, detector, off)
    assert "unexplained" in set(notebook[comparison](bitcoin.iloc[:3000], "5m", 5)["difference"])


def test_a_break_that_we_miss_is_noticed(notebook, bitcoin, monkeypatch):
    detect = notebook["our_breaks"]
    monkeypatch.setitem(notebook, "our_breaks", lambda *arguments: detect(*arguments)[::2])
    for comparison in ("compare_breaks", "compare_blocks"):
        assert "unexplained" in set(notebook[comparison](bitcoin.iloc[:3000], "5m", 5)["difference"])
