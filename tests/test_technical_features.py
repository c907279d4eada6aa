"""Technical features on a year of real candles: of their own window, the same upside down, no two alike."""

import numpy as np
import pandas as pd
import pytest
import talib

from smc_ml.features.config import FeatureConfig
from smc_ml.features.inputs import FeatureInputs, talib_rows
from smc_ml.features.table import feature_table
from smc_ml.features.technical.candlesticks import (
    _FOLDS,
    _INDECISION,
    _OWN_REVERSE,
    _WORDS,
    CANDLESTICKS,
    TECHNICAL,
)
from smc_ml.features.technical.trend import _parabolic_stop, _trend_line
from smc_ml.patterns.config import PatternConfig

PRICES = ("open", "high", "low", "close")


@pytest.fixture(scope="module")
def table(bitcoin):
    return feature_table(bitcoin, families=[TECHNICAL])


def counted(candles: pd.DataFrame) -> list[np.ndarray]:
    return [np.rint(1e9 * candles[name].to_numpy()) for name in PRICES]


def turned(candles: pd.DataFrame, middle: float, logarithmic: bool) -> pd.DataFrame:
    "The chart upside down around a price, with a ruler of prices or of their logarithms."
    prices = middle**2 / candles[[*PRICES]] if logarithmic else 2 * middle - candles[[*PRICES]]
    return candles.assign(open=prices.open, high=prices.low, low=prices.high, close=prices.close)


def typical_size(table: pd.DataFrame) -> pd.Series:
    return table.abs().replace(0.0, np.nan).median()


def test_there_are_84_and_none_is_constant_missing_infinite_or_like_another(table):
    inputs = FeatureInputs(FeatureConfig(), PatternConfig(), "5m", table)
    assert len(TECHNICAL.features) == table.shape[1] == 84
    for name, declared in TECHNICAL.features.items():
        first = declared.lookback(inputs) - 1
        assert table[name].iloc[:first].isna().all() and np.isfinite(table[name].iloc[first:]).all(), name
    assert (table.std() > 0).all()
    likeness = table.iloc[600:].corr().abs().to_numpy()
    assert likeness[~np.eye(84, dtype=bool)].max() < 0.99


@pytest.mark.parametrize("start", [0, 40_000, 90_000])
def test_upside_down_a_feature_changes_its_sign_or_nothing(bitcoin, start):
    candles = bitcoin.iloc[start : start + 5000]
    seen = feature_table(candles, families=[TECHNICAL])
    sign = [-1.0 if declared.signed else 1.0 for declared in TECHNICAL.features.values()]
    off = []
    for logarithmic in (False, True):
        upside_down = feature_table(turned(candles, candles.close.iloc[0], logarithmic), families=[TECHNICAL])
        scale = seen.abs().clip(lower=typical_size(seen), axis=1)
        off.append(((upside_down - seen * sign).abs() / scale).max())
    least = np.minimum(*off)
    assert (least < 1e-9).all(), least[least >= 1e-9]


def test_the_last_row_is_that_of_as_many_candles_as_are_declared(bitcoin, table):
    settings, scale = FeatureInputs(FeatureConfig(), PatternConfig(), "5m", bitcoin), typical_size(table)
    by_lookback: dict[int, list[str]] = {}
    for name, declared in TECHNICAL.features.items():
        by_lookback.setdefault(declared.lookback(settings), []).append(name)
    for end in np.random.default_rng(0).choice(np.arange(1000, len(bitcoin)), 12, replace=False):
        for lookback, names in by_lookback.items():
            row = feature_table(
                bitcoin.iloc[end - lookback : end], wanted=names, families=[TECHNICAL], timeframe="5m"
            )
            whole = table[names].iloc[end - 1]
            assert ((row.iloc[-1] - whole).abs() <= 1e-9 * whole.abs().clip(lower=scale[names])).all(), (
                names,
                end,
            )


def test_a_stop_is_that_of_one_who_starts_two_hundred_candles_ago(bitcoin):
    candles = bitcoin.iloc[30_000:33_000]
    high, low, close = (candles[name].to_numpy() for name in ("high", "low", "close"))
    reach = 3 * talib.ATR(high, low, close, 10)
    stops = _parabolic_stop(high, low, 200, 0.02, 0.2)
    lines = _trend_line(high, low, close, reach, 200)
    for end in range(300, 3000, 9):
        own = slice(end - 200, end)
        np.testing.assert_allclose(stops[end - 1], talib.SAR(high[own], low[own], 0.02, 0.2)[-1], rtol=1e-13)
        assert lines[end - 1] == _trend_line(high[own], low[own], close[own], reach[own], 200)[-1]


def test_a_market_that_stands_still_is_neutral_also_after_a_move(bitcoin):
    candles = bitcoin.iloc[:2600].copy()
    candles.iloc[1500:, candles.columns.get_indexer(PRICES)] = candles.close.iloc[1499]
    last = feature_table(candles, families=[TECHNICAL]).iloc[-1]
    assert np.isfinite(last).all()
    still = {
        "aroon_freshness_25": 1.0,
        "historical_volatility_ratio_24_288": 1.0,
        "range_volatility_share_96": 0.5,
    }
    activity = {"relative_volume_24", "relative_volume_288", "volume_oscillator_14_28", "candle_indecision"}
    others = last.drop([*still, *activity])
    assert last[list(still)].to_dict() == still and others.abs().max() < 1e-30


@pytest.mark.parametrize("symbol", ["bitcoin", "ether"])
def test_candlestick_patterns_do_not_mind_where_zero_is(request, symbol):
    opens, highs, lows, closes = prices = counted(request.getfixturevalue(symbol))
    for pattern in _WORDS:
        ask = getattr(talib, f"CDL{pattern}")
        found = ask(*prices)
        np.testing.assert_array_equal(found, ask(*(values - 3e12 for values in prices)), err_msg=pattern)
        if pattern in _OWN_REVERSE:
            np.testing.assert_array_equal(found, -ask(-opens, -lows, -highs, -closes), err_msg=pattern)
        if pattern in _INDECISION:
            reverse = ask(-opens, -lows, -highs, -closes)
            np.testing.assert_array_equal(abs(found), abs(reverse), err_msg=pattern)


def test_a_candlestick_pattern_is_that_of_its_own_candles(ether):
    prices, generator = counted(ether), np.random.default_rng(1)
    for pattern in _WORDS:
        ask, rows = getattr(talib, f"CDL{pattern}"), talib_rows(f"CDL{pattern}")
        found = ask(*prices)
        some = np.flatnonzero(found) if found.any() else np.arange(20, len(ether))
        for end in 1 + generator.choice(some[some >= rows], min(len(some[some >= rows]), 100), replace=False):
            assert ask(*(values[end - rows : end] for values in prices))[-1] == found[end - 1], pattern


def test_the_folds_hold_the_patterns_that_occur_a_hundred_times_a_year(bitcoin):
    config = FeatureConfig(families=["candlesticks"])
    every = feature_table(bitcoin, families=[CANDLESTICKS], config=config)
    often = {pattern for pattern, words in _WORDS.items() if (every[f"candle_{words}"] != 0).sum() >= 100}
    folded = {*_INDECISION, *(pattern for _, patterns in _FOLDS.values() for pattern in patterns)}
    assert folded <= often
    reverses = {
        "EVENINGSTAR",
        "EVENINGDOJISTAR",
        "GRAVESTONEDOJI",
        "SHORTLINE",
    }  # held by another; no direction
    assert often - folded <= reverses
