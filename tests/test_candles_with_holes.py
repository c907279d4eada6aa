"""Higher candles, features and their lookbacks on real files with holes and closed weekends."""

import numpy as np
import pandas as pd
import pytest

from smc_ml.candles import (
    TIMEFRAMES,
    CandleError,
    Market,
    checked_timeframe,
    closes_at,
    resample,
    segments,
    timeframe_of,
    validate_candles,
)
from smc_ml.causality import assert_causal, assert_parity
from smc_ml.data.sources.files import read_candle_file
from smc_ml.features.config import FeatureConfig
from smc_ml.features.inputs import FeatureSettings
from smc_ml.features.table import declared_features, feature_table
from smc_ml.patterns.config import PatternConfig
from smc_ml.patterns.confluence import confluence
from smc_ml.patterns.detection import detect_market, detect_patterns, detect_timeframes
from smc_ml.patterns.levels import range_position

FX = {"weekends_closed": True, "day_time_zone": "America/New_York", "day_start": "17:00"}
BASES = {"SOL": "5m", "EURUSD": "15m", "BTC": "1h"}
HIGHER = {
    "SOL": ("5m", "15m", "1h", "4h"),
    "EURUSD": ("15m", "1h", "4h", "1d"),
    "BTC": ("1h", "4h", "1d"),
}


@pytest.fixture(scope="module", params=BASES)
def holed(request, market) -> Market:
    "Solana with five holes of 500 candles, the euro with weekends, bitcoin with an exchange's outages."
    if request.param == "EURUSD":
        return Market({"EURUSD": request.getfixturevalue("euro")}, "15m", "forex")
    if request.param == "BTC":
        return Market({"BTC": request.getfixturevalue("hourly")}, "1h")
    path = market / "gappy_SOLUSDT_5m_binance_perp_2024-03.parquet"
    return Market({"SOL": validate_candles(read_candle_file(path), "5m", allow_gaps=True)}, "5m")


def only(market: Market) -> tuple[str, pd.DataFrame]:
    ((symbol, candles),) = market.items()
    return symbol, candles


def thinned(candles: pd.DataFrame, share: float, seed: int) -> pd.DataFrame:
    "Without single candles and short runs, as many as a share of them."
    generator = np.random.default_rng(seed)
    starts = generator.random(len(candles)) < share
    gone = starts | np.append(False, starts[:-1] & (generator.random(len(candles) - 1) < 0.3))
    return candles[~gone]


# ---- higher candles


@pytest.mark.parametrize("higher", ["4h", "1d"])
def test_higher_candles_equal_a_slow_version(holed, higher):
    symbol, candles = only(holed)
    made, step = holed.at(higher)[symbol], TIMEFRAMES[higher]
    zone, shift = ("America/New_York", "17h") if holed.calendar else ("UTC", "0h")
    local = candles.index.tz_convert(zone).tz_localize(None) - pd.Timedelta(shift)
    expected = {}
    for opened, part in candles.groupby((local.floor(step) + pd.Timedelta(shift)).tz_localize(zone)):
        wanted = step / holed.step
        if holed.calendar and (opened.month, opened.day) in (
            (12, 23),
            (12, 25),
            (12, 30),
            (12, 31),
            (1, 1),
            (12, 24),
        ):
            continue  # the calendar expects fewer around holidays
        whole = opened >= candles.index[0] and opened + step <= closes_at(candles)[-1]
        if whole and len(part) >= 0.9 * wanted:
            expected[opened.tz_convert("UTC")] = part
    holidays = [opened for opened in made.index if opened not in expected]
    assert len(expected) > 20 and all(opened.month in (12, 1) and holed.calendar for opened in holidays)
    for opened, part in expected.items():
        one = made.loc[opened]
        assert (one.open, one.high, one.low, one.close) == (
            part.open.iloc[0],
            part.high.max(),
            part.low.min(),
            part.close.iloc[-1],
        )


def test_the_currency_market_has_five_whole_days_a_week(euro):
    days = resample(euro, "15m", "1d", calendar="forex")
    weekdays = days.index.tz_convert("America/New_York").day_name().value_counts()
    assert set(weekdays.index) == {"Sunday", "Monday", "Tuesday", "Wednesday", "Thursday"}
    assert weekdays.min() >= 50
    validate_candles(days, "1d", allow_gaps=True)
    assert timeframe_of(days) == "1d" and timeframe_of(resample(euro, "15m", "4h", calendar="forex")) == "4h"
    config = PatternConfig(**FX, timeframes=("1d",), structure_age=10, zone_age=20)
    assert len(detect_patterns(days, config)) > 50


def test_one_missing_candle_costs_no_higher_one(bitcoin):
    days = bitcoin["2023-01-01":"2023-01-03"]
    for lacking, built in ((1, 3), (28, 3), (29, 2)):
        assert len(resample(days.drop(days.index[300 : 300 + lacking]), "5m", "1d")) == built
    whole = bitcoin["2023-01-01":"2023-02-01"]
    for higher in ("15m", "1h", "4h", "1d"):
        pd.testing.assert_frame_equal(resample(whole, "5m", higher), resample(whole, "5m", higher, 1.0))


def test_a_higher_candle_is_there_when_its_interval_is_over(holed):
    symbol, candles = only(holed)
    whole = holed.at("1d")[symbol]
    for end in np.random.default_rng(3).integers(200, min(len(candles), 4000), 40):
        part = candles.iloc[:end]
        seen = resample(part, holed.timeframe, "1d", calendar=holed.calendar)
        over = whole[whole.index + TIMEFRAMES["1d"] <= closes_at(part, holed.timeframe)[-1]]
        pd.testing.assert_frame_equal(seen, over, check_freq=False)


# ---- features at their declared lookback


@pytest.fixture(scope="module", params=[0.0, 0.02], ids=["as it is", "thinned"])
def case(request, holed) -> tuple[Market, PatternConfig]:
    symbol, candles = only(holed)
    thin = thinned(candles, request.param, 5) if request.param else candles
    rules = FX if holed.calendar else {}
    config = PatternConfig(structure_age=20, swing_age=60, zone_age=40, timeframes=HIGHER[symbol], **rules)
    return holed.map(lambda _: thin), config


SMALL = FeatureConfig(families=["smc"], daily_bars=4, profile_bars=60)


def features_on(case, name):
    market, config = case

    def compute(candles):
        here = market.map(lambda _: candles)
        kinds = [kind for kind in declared[name].inputs if kind not in candles]
        patterns = detect_market(here, config)[only(here)[0]] if kinds else None
        return feature_table(
            candles, patterns, SMALL, config, [name], timeframe=market.timeframe, calendar=market.calendar
        )

    declared = {feature.name: feature for feature in declared_features(SMALL)}
    return compute, declared[name].lookback(FeatureSettings(SMALL, config, market.timeframe))


@pytest.mark.parametrize("name", [feature.name for feature in declared_features(SMALL)])
def test_the_declared_lookback_is_enough_where_candles_are_missing(case, name):
    compute, lookback = features_on(case, name)
    market, config = case
    _, candles = only(market)
    parts = segments(candles, market.timeframe, config.maximum_hole, config.weekends_closed)
    longest = candles[max(parts, key=lambda part: part.stop - part.start)].iloc[:4000]
    if len(longest) < lookback + 50:
        pytest.skip(f"no stretch of {lookback} candles without a long hole")
    assert_parity(compute, longest, lookback, cuts=8)
    assert np.isfinite(compute(longest).to_numpy()[lookback - 1 :]).all()


def test_the_daily_trend_looks_at_no_future(case):
    compute, lookback = features_on(case, "daily_trend_strength")
    _, candles = only(case[0])
    assert_causal(compute, candles.iloc[:4000], cuts=25, first=lookback)


# ---- the timeframe of a frame


def test_no_door_takes_a_timeframe_that_contradicts_the_index(bitcoin):
    quarters = resample(bitcoin.iloc[:2000], "5m", "15m")
    patterns = detect_patterns(quarters)
    assert (patterns["timeframe"] == "15m").all()
    closes = set(quarters.index + pd.Timedelta("15min"))
    assert set(patterns["known_at"]) <= closes
    doors = [
        lambda: detect_patterns(quarters, timeframe="5m"),
        lambda: detect_patterns(quarters, timeframe="5m", validate=False),
        lambda: detect_timeframes({"5m": quarters}, PatternConfig(timeframes=("5m",))),
        lambda: Market({"BTC": quarters}, "5m"),
        lambda: resample(quarters, "5m", "1h"),
        lambda: segments(quarters, "5m"),
        lambda: closes_at(quarters, "5m"),
        lambda: validate_candles(quarters, "5m", allow_gaps=True),
        lambda: range_position(quarters, patterns, "5m"),
        lambda: confluence(quarters, patterns, "5m"),
        lambda: feature_table(quarters, wanted=["price_momentum"], timeframe="5m"),
    ]
    for door in doors:
        with pytest.raises(
            CandleError, match=r"the candles are 15m apart from open_time 2023-01-01 .*, not 5m: "
        ):
            door()
    with pytest.raises(CandleError, match="the candles are 5m apart"):
        closes_at(bitcoin, "15m")


def test_holes_and_weekends_do_not_hide_the_timeframe(holed):
    _, candles = only(holed)
    for thin in (candles, thinned(candles, 0.3, 1), candles.iloc[:2], candles[::-1]):
        assert timeframe_of(thin) == checked_timeframe(thin, holed.timeframe) == holed.timeframe
    assert checked_timeframe(candles.iloc[:1], holed.timeframe) == holed.timeframe
    with pytest.raises(CandleError, match="1 candle tells no timeframe: say it"):
        detect_patterns(candles.iloc[:1])
    with pytest.raises(CandleError, match="no timeframe '7m'"):
        detect_patterns(candles.iloc[:1], timeframe="7m")


def test_the_daily_trend_needs_no_more_than_its_lookback_when_days_are_incomplete(bitcoin):
    candles = bitcoin.iloc[60_000:70_000].drop(
        bitcoin.index[66_000:66_040:10]
    )  # four single candles of a day
    name = "daily_trend_strength"
    (declared,) = (feature for feature in declared_features() if feature.name == name)
    lookback = declared.lookback(FeatureSettings(FeatureConfig(), PatternConfig(), "5m"))
    assert lookback == 3168
    assert_parity(lambda part: feature_table(part, wanted=[name], timeframe="5m"), candles, lookback, cuts=40)
    lacking = candles.drop(candles.index[4000:4800:3])  # a day and a half of which a third is missing
    assert_parity(lambda part: feature_table(part, wanted=[name], timeframe="5m"), lacking, lookback, cuts=40)
