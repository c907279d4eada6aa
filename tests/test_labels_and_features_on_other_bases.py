"""Labels, horizons, weights, splits and features where the base is a minute, a quarter of an hour or an hour.

Real candles and a walk.
"""

import numpy as np
import pandas as pd
import pytest
from test_labels_on_real_candles import slow_label
from test_splits_on_random_labels import touching

from smc_ml.candles import TIMEFRAMES, Market, closes_at, segments, timeframe_of, validate_candles
from smc_ml.causality import assert_causal, assert_parity
from smc_ml.costs import Costs
from smc_ml.data.sources.files import read_candle_file
from smc_ml.features.config import FeatureConfig
from smc_ml.features.inputs import FeatureError
from smc_ml.features.table import declared_features, feature_table, feature_tables, longest_lookback
from smc_ml.labels.checks import LabelError
from smc_ml.labels.config import HorizonConfig, LabelingConfig, WeightConfig
from smc_ml.labels.horizons import HorizonError, horizon_tables, known_at
from smc_ml.labels.outcomes import SMCPatternLabeler, label_patterns, label_symbols
from smc_ml.labels.splits import PurgedKFold, PurgedWalkForward
from smc_ml.labels.weights import average_uniqueness, sample_weights
from smc_ml.patterns.config import PatternConfig
from smc_ml.patterns.confluence import trend_at
from smc_ml.patterns.detection import detect_timeframes
from smc_ml.simulation.market import random_walk

# base -> timeframes of patterns, horizons, pairs of the trends
BASES = {
    "1m": (("1m", "5m", "15m", "1h", "4h", "1d"), ("1m", "15m", "4h"), ("5m", "15m"), ("1h", "4h")),
    "15m": (("15m", "1h", "4h", "1d"), ("15m", "4h", "1d"), ("15m", "1h"), ("1h", "4h")),
    "1h": (("1h", "4h", "1d"), ("1h", "12h", "1d"), ("1h", "4h"), ("4h", "1d")),
}
SMALL = FeatureConfig(families=["smc"], daily_bars=2, profile_bars=60)


def minutes() -> pd.DataFrame:
    "A walk in one-minute candles."
    walk = random_walk(18_000, seed=5)
    times = pd.date_range("2024-01-01", periods=len(walk), freq="1min", tz="UTC", name="open_time", unit="ns")
    return walk.set_axis(times)


def hours(folder) -> pd.DataFrame:
    "Ten months of real bitcoin candles without a long hole, and with short ones."
    candles = read_candle_file(folder / "BTCUSDT_1h_binance_spot_2020-01_2021-10.parquet")
    validate_candles(candles, "1h", "BTCUSDT", allow_gaps=True)
    return candles[max(segments(candles, "1h"), key=lambda part: part.stop - part.start)]


def short(base: str) -> PatternConfig:
    return PatternConfig(
        structure_age=20, swing_age=60, zone_age=40, timeframes=BASES[base][0], weekends_closed=base == "15m"
    )


@pytest.fixture(scope="module", params=BASES)
def based(request) -> Market:
    "One symbol of each base."
    if request.param == "1m":
        return Market({"WALK": minutes()}, "1m")
    if request.param == "1h":
        return Market({"BTCUSDT": hours(request.getfixturevalue("market"))}, "1h")
    euro = request.getfixturevalue("euro")
    longest = max(segments(euro, "15m", 3, True), key=lambda part: part.stop - part.start)
    return Market({"EURUSD": euro[longest].iloc[:8000]}, "15m")


def patterns_of(candles: pd.DataFrame, base: str) -> pd.DataFrame:
    one = Market({"": candles}, base)
    return detect_timeframes({name: one.at(name)[""] for name in BASES[base][0]}, short(base))


@pytest.fixture(scope="module")
def found(based) -> dict[str, pd.DataFrame]:
    return {symbol: patterns_of(candles, based.timeframe) for symbol, candles in based.items()}


def only(tables):
    "What there is of the one symbol."
    (one,) = tables.values()
    return one


# ---- labels


@pytest.mark.parametrize("entry", ["next_open", "limit_edge"])
@pytest.mark.parametrize("traded", [0, 1])
def test_labels_of_the_base_and_of_a_multiple_equal_the_slow_version(based, found, entry, traded):
    base, config = (
        based.timeframe,
        LabelingConfig(
            entry=entry,
            timeframes=[BASES[based.timeframe][0][traded]],
            maximum_bars=30,
            limit_expiry=20,
            maximum_wait=60,
        ),
    )
    candles, settings, (symbol,) = only(based).iloc[:1500], short(base), based
    last = closes_at(candles, base)[-1]
    patterns = only(found)[only(found)["known_at"] <= last]
    labels = label_patterns(candles, patterns, symbol, config, Costs(), pattern_config=settings)
    kinds = patterns["kind"].isin(config.kinds) & patterns["timeframe"].isin(config.timeframes)
    swept = (patterns["kind"] != "liquidity_sweep") | patterns["label"].isin(config.liquidity)
    scaled = patterns["scale"].isin(["", *config.scales])
    expected = [
        slow
        for _, pattern in patterns[kinds & swept & scaled].iterrows()
        if (slow := slow_label(candles, pattern, config, Costs(), TIMEFRAMES[base]))
    ]
    assert len(labels) == len(expected) > (25 if traded else 100)
    ends = sorted(slow["exit_at"] for slow in expected)
    assert sorted(labels["exit_at"]) == ends
    earned = sorted(slow["realised_r"] for slow in expected if "realised_r" in slow)
    np.testing.assert_allclose(np.sort(labels["realised_r"].dropna()), earned, rtol=0, atol=1e-9)


def test_the_timeframe_is_read_from_the_candles(based, found):
    base, config = based.timeframe, LabelingConfig(timeframes=BASES[based.timeframe][0][:2])
    candles, patterns, (symbol,) = only(based), only(found), based
    read, said = (
        label_patterns(candles, patterns, symbol, config, timeframe=timeframe, pattern_config=short(base))
        for timeframe in (None, base)
    )
    assert timeframe_of(candles) == base and len(read) > 300
    pd.testing.assert_frame_equal(read, said, check_exact=True)
    labels = label_symbols(based, found, config, pattern_config=short(base))
    assert len(labels) == read["filled"].sum() and labels["confluence"].notna().mean() > 0.5
    entered, ended = (candles.index.searchsorted(labels[name]) for name in ("entry_at", "exit_at"))
    assert (ended - entered == labels["holding_bars"]).all()  # candles, also across short holes


def test_the_labeler_detects_on_any_base(based):
    base, (symbol,) = based.timeframe, based
    config = LabelingConfig(timeframes=BASES[base][0][:2])
    labels = SMCPatternLabeler(config, pattern_config=short(base)).label(only(based).iloc[:3000], symbol)
    assert set(labels["timeframe"]) == set(BASES[base][0][:2])


@pytest.mark.parametrize("base, odd", [("15m", "5m"), ("15m", "20m"), ("1h", "15m"), ("1h", "90m")])
def test_only_multiples_of_the_base_are_traded(base, odd):
    candles = only(Market({"WALK": minutes()}, "1m").at(base))
    labeler = SMCPatternLabeler(LabelingConfig(timeframes=[odd]), pattern_config=short(base))
    with pytest.raises(LabelError, match=f"WALK: {odd} patterns cannot be traded on {base} candles: take"):
        labeler.label(candles, "WALK")


# ---- horizons


def test_targets_of_horizons_count_the_candles_of_the_base(based):
    base, wanted = based.timeframe, BASES[based.timeframe][1]
    config = HorizonConfig(horizons=wanted, weekends_closed=base == "15m", maximum_missing=0.0)
    targets, log = only(horizon_tables(based, config)), np.log(only(based))
    assert set(only(horizon_tables(based, config))) == {
        f"{what}_{horizon}" for what in ("return", "direction", "drawdown", "rally") for horizon in wanted
    }
    for horizon in wanted:
        bars = int(pd.Timedelta(horizon.replace("m", "min")) / based.step)
        passed = closes_at(log, base) + bars * based.step
        whole = pd.Series(log.index).shift(-bars).to_numpy() == (log.index + bars * based.step).to_numpy()
        expected = (log["close"].shift(-bars) - log["open"].shift(-1)).to_numpy()
        np.testing.assert_allclose(targets[f"return_{horizon}"][whole], expected[whole], rtol=0, atol=1e-12)
        assert targets[f"return_{horizon}"][~whole].isna().all() and whole.mean() > 0.7
        assert (known_at(targets, horizon) == passed).all()
        assert set(targets[f"direction_{horizon}"].dropna().unique()) == {-1, 0, 1}
    if base == "1h":
        with pytest.raises(HorizonError, match="a horizon of 15m is no multiple of a 1h candle"):
            horizon_tables(based)


# ---- weights and splits


@pytest.mark.parametrize(
    "splitter", [PurgedWalkForward(4, 0.4, pd.Timedelta("1h")), PurgedKFold(4, pd.Timedelta("1h"))]
)
def test_weights_and_splits_know_no_base(based, found, splitter):
    base, config = based.timeframe, LabelingConfig(timeframes=BASES[based.timeframe][0][:2])
    labels = label_symbols(based, found, config, pattern_config=short(base))
    unique, weights = average_uniqueness(labels), sample_weights(labels, WeightConfig(by="return"), based)
    assert 0 < unique.min() <= unique.max() <= 1 + 1e-9 and weights.mean() == pytest.approx(1)
    for train, test in splitter.split(labels):
        assert touching(labels, train, test, splitter.embargo).max() <= 0


# ---- features


def features_on(base: str):
    return lambda candles: feature_table(candles, patterns_of(candles, base), SMALL, short(base))


def test_features_are_whole_and_forget_on_any_base(based, found):
    base, candles = based.timeframe, only(based)
    lookback = longest_lookback(SMALL, short(base), base)
    features = only(feature_tables(based, found, SMALL, short(base)))
    assert len(candles) > lookback + 1000 and features.shape[1] == len(declared_features(SMALL))
    whole = features.iloc[lookback - 1 :]
    assert np.isfinite(whole).all(axis=None) and (whole.nunique() > 2).all()
    pd.testing.assert_frame_equal(features, features_on(base)(candles), check_exact=True, check_freq=False)


def test_no_feature_looks_ahead_on_any_base(based):
    base, candles = based.timeframe, only(based)
    lookback = longest_lookback(SMALL, short(base), base)
    assert_causal(features_on(base), candles.iloc[: lookback + 2000], cuts=8, first=lookback)
    assert_parity(features_on(base), candles.iloc[: lookback + 2000], lookback, cuts=8)


def test_trends_are_of_the_pairs_that_exist(based, found):
    base, candles, patterns = based.timeframe, only(based), only(found)
    age, closes = short(base).structure_age, closes_at(candles, base)
    wanted = ["m5_m15_confluence", "h1_h4_alignment"]
    features = feature_table(candles, patterns, SMALL, short(base), wanted)
    for name, pair in zip(wanted, BASES[base][2:], strict=True):
        expected = np.mean([trend_at(closes, patterns, timeframe, age) for timeframe in pair], axis=0)
        exact = features[name].notna().to_numpy()
        assert exact.mean() > 0.05 and (features[name][exact] == expected[exact]).all()


def test_the_settings_of_the_pipeline_serve_every_base(based):
    "With their long memory; only the patterns' timeframes are those of the base."
    base, candles = based.timeframe, only(based)
    settings = PatternConfig(timeframes=BASES[base][0], weekends_closed=base == "15m")
    one = based.at(base)
    patterns = detect_timeframes({name: only(one.at(name)) for name in BASES[base][0]}, settings)
    features = feature_table(candles, patterns, FeatureConfig(families=["smc"]), settings)
    for declared in declared_features(SMALL):
        if declared.name not in ("h1_h4_alignment",) or base != "1m":  # there 24 days of candles are too few
            assert np.isfinite(features[declared.name].iloc[-1]), declared.name


def test_patterns_that_were_not_detected_are_named(based, found):
    base, candles, patterns = based.timeframe, only(based), only(found)
    second, (symbol,) = BASES[base][2][1], based
    without = patterns[patterns["timeframe"] != second]
    with pytest.raises(
        FeatureError, match=f"{symbol}: there is not one pattern of {second} on candles from .*"
    ):
        feature_tables(based, {symbol: without}, SMALL, short(base))
    few = short(base).model_copy(update={"timeframes": (base,)})
    named = FeatureConfig(families=["smc"], timeframes=[base, second])
    with pytest.raises(
        FeatureError, match=f"features.timeframes names {second}, on which no patterns are detected"
    ):
        feature_table(candles, patterns, named, few)


# ---- every feature needs what it says, and nothing else


@pytest.mark.parametrize("declared", declared_features(SMALL), ids=lambda declared: declared.name)
def test_a_feature_needs_its_declared_inputs_alone(declared):
    candles = minutes()
    patterns = patterns_of(candles, "1m")
    columns = [name for name in declared.inputs if name in candles]
    kinds = tuple(name for name in declared.inputs if name not in candles)
    settings = short("1m").model_copy(update={"kinds": kinds})
    whole = feature_table(candles, patterns, SMALL, short("1m"), [declared.name])
    alone = feature_table(candles[columns], patterns, SMALL, settings, [declared.name])
    pd.testing.assert_frame_equal(whole, alone, check_exact=True)
    for name in columns:
        with pytest.raises(FeatureError, match=f"feature {declared.name} needs {name}"):
            feature_table(candles.drop(columns=name), patterns, SMALL, settings, [declared.name])
