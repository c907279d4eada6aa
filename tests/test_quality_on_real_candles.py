"""The real files at hand: their known defects are found, and what is real is not called an error."""

import json
import time

import numpy as np
import pandas as pd
import pytest

from smc_ml.candles import PRICES, segments, validate_candles
from smc_ml.data.quality.assessment import assess_quality
from smc_ml.data.quality.config import RepairConfig
from smc_ml.data.quality.repair import repair

DEFECTS = (
    "duplicates",
    "out_of_order",
    "off_grid",
    "violations",
    "frozen",
    "spikes",
    "splices",
    "clock",
    "outside",
    "disagreements",
)


def read(path, columns=None) -> pd.DataFrame:
    table = pd.read_parquet(path).set_index("timestamp")
    table.index = table.index.as_unit("ns").rename("open_time")
    return (table.rename(columns=columns) if columns else table)[[*PRICES, "volume"]].astype(float)


def defects(report) -> dict[str, int]:
    return {name: len(getattr(report, name)) for name in DEFECTS if len(getattr(report, name))}


@pytest.fixture(scope="session")
def hourly(market):
    return read(market / "BTCUSDT_1h_binance_spot_2020-01_2021-10.parquet")


@pytest.fixture(scope="session")
def solana(market):
    return read(market / "gappy_SOLUSDT_5m_binance_perp_2024-03.parquet")


@pytest.fixture(scope="session")
def hourly_euro(market):
    return read(
        market / "EUR_USD_H1_oanda_2020_2021.parquet",
        {f"mid_{short}": name for short, name in zip("ohlc", PRICES, strict=True)},
    )


@pytest.fixture(scope="session")
def broker(market):
    "A broker's export with its own clock taken for UTC."
    table = pd.read_parquet(market / "EURUSD_15m_mt5_2022-10_2023-10.parquet")
    times = (
        pd.DatetimeIndex(table["timestamp_broker_naive"]).as_unit("ns").tz_localize("UTC").rename("open_time")
    )
    return table[list(PRICES)].assign(volume=table["tick_volume"]).astype(float).set_index(times)


def test_five_gaps_of_five_hundred(solana):
    report = assess_quality(solana, "5m", name="SOLUSDT")
    assert report.gaps["missing"].tolist() == [500] * 5
    assert (report.gaps["end"] - report.gaps["start"] == pd.Timedelta("5min") * 500).all()
    assert defects(report) == {}
    assert (
        report.sentences()[1]
        == "5 gaps, 2,500 candles missing (23.4 %), the longest 41.7 h on 2024-03-06 05:00."
    )
    assert [part.stop - part.start for part in segments(solana, "5m", 0)] == np.diff(
        [0, *np.flatnonzero(np.diff(solana.index) > pd.Timedelta("5min")) + 1, len(solana)]
    ).tolist()


def test_fourteen_outages_of_binance(hourly):
    report = assess_quality(hourly, "1h", name="BTCUSDT")
    assert (len(report.gaps), report.gaps["missing"].sum()) == (14, 31)
    assert defects(report) == {} and report.metrics()["zero_volume"] == 1
    assert (
        report.sentences()[1] == "14 gaps, 31 candles missing (0.2 %), the longest 5 h on 2020-02-19 12:00."
    )
    assert len(segments(hourly, "1h", 0)) == 15 and len(segments(hourly, "1h", 4)) == 2


def test_weekends_and_holidays_are_no_gaps(hourly_euro):
    "What remains are two real gaps at the start of a week: one candle and two."
    report = assess_quality(hourly_euro, "1h", "forex", name="EUR_USD")
    assert [(f"{gap.start:%Y-%m-%d %H:%M}", gap.missing) for gap in report.gaps.itertuples()] == [
        ("2020-05-31 21:00", 1),
        ("2021-11-21 22:00", 2),
    ]
    assert defects(report) == {}
    assert (
        len(segments(hourly_euro, "1h", 0, weekends_closed=True)) == 1
        and len(segments(hourly_euro, "1h", 0)) == 105
    )  # both gaps prolong a weekend
    assert len(assess_quality(hourly_euro, "1h").gaps) == 104


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("symbol", ["BTC", "ETH"])
def test_a_clean_year_is_clean(symbol, alone, bitcoin, ether):
    "No gap, three candles of a halt, no splice; the fall of ten percent happened."
    candles, other = (bitcoin, ether) if symbol == "BTC" else (ether, bitcoin)
    report = assess_quality(
        candles, "5m", other=None if alone else other, name=symbol, other_name="the other"
    )
    assert len(report.gaps) == 0 and defects(report) == {} and report.clean
    assert report.zero_volume.to_dict("list") == {
        "start": [pd.Timestamp("2023-09-12 08:35", tz="UTC")],
        "end": [pd.Timestamp("2023-09-12 08:50", tz="UTC")],
        "candles": [3],
    }
    metrics = report.metrics()
    assert metrics["largest_move_at"] == "2023-08-17 21:40:00" and metrics[
        "largest_move_percent"
    ] == pytest.approx(-10.0 if symbol == "BTC" else -12.1, abs=0.05)
    assert metrics["stamped_by_close"] is (None if alone else False) and metrics["lag"] == (
        None if alone else 0
    )
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_the_clock_of_a_broker_is_seen(broker):
    report = assess_quality(broker, "15m", "forex", name="EURUSD")
    assert set(report.clock["kind"]) == {"weekend at the wrong hour"} and sorted(report.clock["hours"]) == [
        2.0,
        3.0,
    ]
    assert len(report.outside) > 400


def test_the_clock_of_a_broker_beside_another(broker):
    moved = broker.set_axis(broker.index - pd.Timedelta("2h"))
    clock = assess_quality(broker, "15m", "forex", other=moved).clock
    assert clock.loc[clock["kind"] == "shifted", "hours"].tolist() == [2.0]


def test_in_universal_time_the_export_has_five_small_gaps(euro):
    report = assess_quality(euro, "15m", "forex", name="EURUSD")
    assert (len(report.gaps), report.gaps["missing"].sum(), defects(report)) == (5, 20, {})
    assert len(segments(euro, "15m", 0, weekends_closed=True)) == 2  # four of them prolong a weekend


# Nothing is glued where the spread widens or the volume is counted otherwise


@pytest.fixture(params=["15m", "1h"])
def forex(request, euro, hourly_euro):
    "Real candles of EURUSD and their timeframe."
    return (euro if request.param == "15m" else hourly_euro)[[*PRICES, "volume"]], request.param


def minute_of_new_york(candles: pd.DataFrame) -> np.ndarray:
    "Minutes since 17:00 New York."
    local = candles.index.tz_convert("America/New_York")
    return ((local.hour - 17) * 60 + local.minute).to_numpy() % (24 * 60)


def at_rollover(candles: pd.DataFrame, minutes: int, points: float, side: int, fades: bool) -> pd.DataFrame:
    "Bids (side −1) or asks (1) whose spread widens for some minutes from 17:00 New York on, more or less so."
    since = minute_of_new_york(candles)
    days = pd.factorize((candles.index.tz_convert("America/New_York") - pd.Timedelta("17h")).date)[0]
    width = points * np.random.default_rng(0).uniform(0.5, 1.5, days.max() + 1)[days] / 2
    left = np.where(since < minutes, 1 - since / minutes if fades else 1.0, 0.0)
    moved = (candles[list(PRICES)] + (side * width * left)[:, None]).round(5)
    return candles.assign(**moved)


@pytest.mark.parametrize("fades", [True, False])
@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("minutes, points", [(60, 0.003), (120, 0.004), (180, 0.0015), (240, 0.003)])
def test_a_wide_spread_at_the_rollover_is_no_splice(forex, minutes, points, side, fades):
    candles, timeframe = forex
    wide = at_rollover(candles, minutes, points, side, fades)
    report = assess_quality(wide, timeframe, "forex", name="EURUSD")
    assert len(report.splices) == 0 and not any("spliced" in one for one in report.sentences())


@pytest.mark.parametrize("kind", ["bid", "ask"])
def test_bids_and_asks_of_a_broker_are_not_glued(market, kind):
    names = {f"{kind}_{short}": name for short, name in zip("ohlc", PRICES, strict=True)}
    candles = read(market / "EUR_USD_H1_oanda_2020_2021.parquet", names)
    assert defects(assess_quality(candles, "1h", "forex")) == {}


@pytest.mark.parametrize("change", ["lots of ten", "a thousandth", "a hundredfold", "in quote units"])
def test_another_lot_size_or_unit_is_told_and_no_splice(forex, hourly, change):
    for candles, timeframe, calendar in ((*forex, "forex"), (hourly, "1h", None)):
        half = len(candles) // 2
        counted = {
            "lots of ten": (candles["volume"] / 10).round() * 10,
            "a thousandth": candles["volume"] / 1000,
            "a hundredfold": candles["volume"] * 100,
            "in quote units": candles["volume"] * candles["close"] * 1000,
        }[change]
        volume = candles["volume"].where(np.arange(len(candles)) < half, counted)
        report = assess_quality(candles.assign(volume=volume), timeframe, calendar)
        assert defects(report) == {} and report.metrics()["unit_changes"] == len(report.units) >= 1
        assert ((report.units["time"] - candles.index[half]).abs() <= pd.Timedelta("6h")).all()
        said = " ".join(report.sentences())
        assert "of the volume from" in said and "spliced" not in said


@pytest.mark.parametrize("hour", [3, 17, 18, 20, 22])
@pytest.mark.parametrize("what", ["denominated anew", "another pair"])
def test_another_instrument_is_found_at_every_hour(forex, hour, what):
    "In the rollover hours too, while bids fall there every day."
    candles, timeframe = forex
    candles = at_rollover(candles, 120, 0.003, -1, False)
    local = candles.index.tz_convert("America/New_York")
    rows = np.flatnonzero((local.hour == hour) & (local.day_of_week < 4))
    row = rows[len(rows) // 2]
    factor = {"denominated anew": 100.0, "another pair": 1.17}[what]
    prices = candles[list(PRICES)] * np.where(np.arange(len(candles)) < row, 1.0, factor)[:, None]
    report = assess_quality(candles.assign(**prices), timeframe, "forex")
    levels = report.splices[report.splices["kind"] == "level"]
    assert levels["time"].tolist() == [candles.index[row]]


def test_repairs_of_real_gaps(hourly, solana):
    report = assess_quality(hourly, "1h")
    same, counts = repair(hourly, report)
    pd.testing.assert_frame_equal(same, hourly)
    assert not any(counts.values())
    filled, counts = repair(hourly, report, RepairConfig(fill_up_to=2))
    short = report.gaps[report.gaps["missing"] <= 2]
    assert (counts["gaps_filled"], counts["candles_filled"]) == (
        len(short),
        short["missing"].sum(),
    ) and filled["filled"].sum() == short["missing"].sum()
    assert (filled.loc[filled["filled"] == 1, "volume"] == 0).all() and filled.loc[
        hourly.index, list(PRICES)
    ].equals(hourly[list(PRICES)])
    assert (
        assess_quality(filled[[*PRICES, "volume"]], "1h").gaps["missing"].tolist()
        == report.gaps.loc[report.gaps["missing"] > 2, "missing"].tolist()
    )
    validate_candles(repair(hourly, report, RepairConfig(fill_up_to=5))[0], "1h")
    assert (
        repair(solana, assess_quality(solana, "5m"), RepairConfig(fill_up_to=499))[1]["candles_filled"] == 0
    )


def test_a_year_takes_less_than_a_second(bitcoin, ether):
    assess_quality(bitcoin, "5m", other=ether)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assess_quality(bitcoin, "5m", other=ether)
        times.append(time.perf_counter() - start)
    assert min(times) < 1.0
