"""Nothing reaches across a hole: labels, features and targets are those of the parts of real candles."""

import numpy as np
import pandas as pd
import pytest

from smc_ml.candles import TIMEFRAMES, closes_at, resample, segments, validate_candles
from smc_ml.features.config import FeatureConfig
from smc_ml.features.table import feature_catalogue, longest_lookback, smc_features
from smc_ml.labels.config import HorizonConfig, LabelingConfig
from smc_ml.labels.horizons import horizon_targets
from smc_ml.labels.outcomes import label_patterns
from smc_ml.models.windows import event_windows
from smc_ml.patterns.config import PatternConfig
from smc_ml.patterns.detection import detect_timeframes
from smc_ml.patterns.events import candle_records, prepare

SHORT, SMALL = (
    PatternConfig(structure_age=20, swing_age=60, zone_age=40, timeframes=("5m", "15m", "1h", "4h", "1d")),
    FeatureConfig(families=["smc"], daily_bars=2, profile_bars=60),
)


@pytest.fixture(scope="module")
def holed(bitcoin) -> pd.DataFrame:
    "Six weeks of real candles without two days, seven hours and twenty minutes, and three single ones."
    candles, day = bitcoin["2023-02-01":"2023-03-14"], pd.Timedelta("1D")
    start = candles.index[0]
    gone = [
        (start + 14 * day, 2 * day),
        (start + 25 * day, pd.Timedelta("7h")),
        (start + 33 * day, pd.Timedelta("20min")),
        *((start + days * day, pd.Timedelta("5min")) for days in (5, 18, 30)),
    ]
    kept = np.ones(len(candles), bool)
    for begin, length in gone:
        kept &= ~((candles.index >= begin) & (candles.index < begin + length))
    return validate_candles(candles[kept], "5m", "BTCUSDT", allow_gaps=True)


def patterns_of(candles: pd.DataFrame) -> pd.DataFrame:
    return detect_timeframes(
        {
            name: candles if name == "5m" else resample(candles, "5m", name)
            for name in ("5m", "15m", "1h", "4h", "1d")
        },
        SHORT,
    )


def test_only_long_holes_end_a_segment(holed):
    parts = segments(holed, "5m")
    assert len(parts) == 4 and [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    steps = np.diff(holed.index) / TIMEFRAMES["5m"]
    assert sorted(steps[[part.start - 1 for part in parts[1:]]]) == [5, 85, 577] and (steps > 1).sum() == 6


@pytest.mark.parametrize("timeframe, weekends_closed", [("15m", True), ("15m", False)])
def test_the_patterns_see_the_same_segments(euro, timeframe, weekends_closed):
    records = candle_records(euro)
    prepare(records, -1, 0, len(records), 14, 4 * TIMEFRAMES[timeframe].value, weekends_closed)
    assert np.unique(records["first"]).tolist() == [
        part.start for part in segments(euro, timeframe, 3, weekends_closed)
    ]
    assert len(segments(euro, timeframe, 3, True)) < 10 < 50 < len(segments(euro, timeframe, 3, False))


@pytest.mark.parametrize("entry", ["next_open", "limit_edge"])
def test_no_trade_reaches_across_a_hole_and_none_is_lost(holed, entry):
    config, patterns = LabelingConfig(entry=entry), patterns_of(holed)
    labels = label_patterns(holed, patterns, "BTCUSDT", config, pattern_config=SHORT)
    parts = segments(holed, "5m")
    starts = [holed.index[part.start] for part in parts]

    def part_of(times):
        return np.searchsorted(starts, times, side="right")

    ends = labels["exit_at"] - pd.Timedelta("1ns")
    assert (part_of(labels["known_at"] - pd.Timedelta("1ns")) == part_of(ends)).all()
    assert (holed.index[labels["row"]] + TIMEFRAMES["5m"] == pd.DatetimeIndex(labels["time"])).all()
    for part in parts:
        alone = holed[part]
        known = patterns[
            (patterns["known_at"] > alone.index[0]) & (patterns["known_at"] <= closes_at(alone, "5m")[-1])
        ]
        own = labels[(labels["row"] >= part.start) & (labels["row"] < part.stop)].reset_index(drop=True)
        pd.testing.assert_frame_equal(
            own.assign(row=own["row"] - part.start),
            label_patterns(alone, known, "BTCUSDT", config, pattern_config=SHORT),
            check_dtype=False,
        )
    assert len(labels) > 100


def test_features_and_windows_begin_anew_after_a_hole(holed):
    features, lookback = (
        smc_features(holed, patterns_of(holed), SMALL, SHORT),
        longest_lookback(SMALL, SHORT),
    )
    for part in segments(holed, "5m"):
        whole = features.iloc[part].notna().all(axis=1).to_numpy()
        assert not whole[: lookback - 1].any() and whole[lookback:].all()
        alone = holed[part]
        pd.testing.assert_frame_equal(
            features.iloc[part],
            smc_features(alone, patterns_of(alone), SMALL, SHORT),
            rtol=1e-9,
            check_freq=False,
        )
    rows = np.arange(len(holed))
    events = pd.DataFrame({"symbol": "BTCUSDT", "row": rows, "time": closes_at(holed, "5m"), "direction": 1})
    _, kept = event_windows({"BTCUSDT": features}, events, 60, feature_catalogue(wanted=["smc"]).signed)
    part_of = np.repeat(np.arange(4), [part.stop - part.start for part in segments(holed, "5m")])
    assert len(kept) and (part_of[kept] == part_of[kept - 59]).all()


def test_targets_of_horizons_end_in_their_segment(holed):
    targets = horizon_targets(holed, HorizonConfig(horizons=("4h",)))
    parts = segments(holed, "5m")
    for part in parts:
        pd.testing.assert_frame_equal(
            targets.iloc[part],
            horizon_targets(holed.iloc[part], HorizonConfig(horizons=("4h",))),
            check_exact=True,
            check_freq=False,
        )
    assert targets["return_4h"].isna().sum() >= 48 * len(parts)
