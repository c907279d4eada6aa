"""Nothing looks ahead: patterns, labels and features on real candles, with the future taken away or poisoned."""
import numpy as np
import pandas as pd
import pytest
from conftest import by_timeframe
from smc_ml.candles import TIMEFRAMES, resample
from smc_ml.causality import LookAheadError, assert_causal, assert_causal_events, assert_parity, known_before, random_cuts
from smc_ml.features.smc import FEATURES, longest_lookback, smc_features
from smc_ml.labels.outcomes import label_patterns
from smc_ml.patterns.detection import KINDS, PatternConfig, detect_patterns, detect_timeframes

FIVE_MINUTES = TIMEFRAMES["5m"]

@pytest.mark.parametrize("timeframe", ["5m", "15m", "1h"])
def test_every_pattern_is_known_when_it_says(bitcoin, timeframe):
    candles = bitcoin if timeframe == "5m" else resample(bitcoin, "5m", timeframe)
    assert set(detect_patterns(candles, timeframe=timeframe)["kind"]) == set(KINDS)
    assert_causal_events(lambda c: detect_patterns(c, timeframe=timeframe), candles, TIMEFRAMES[timeframe], cuts=60, first=500)

def test_at_every_close_the_last_candles_alone_tell_what_is_new(ether):
    "Random cuts can miss a leak that shows on one candle in three thousand; each close of three weeks in turn does not."
    candles, lookback = ether.iloc[:6500], PatternConfig().lookback
    fixed = ["kind", "direction", "formed_at", "known_at", "top", "bottom", "level", "strength"]
    whole = {time: rows for time, rows in detect_patterns(candles)[fixed].groupby("known_at")}
    for end in range(lookback, len(candles)):
        seen, closed = detect_patterns(candles.iloc[end - lookback:end])[fixed], candles.index[end - 1] + FIVE_MINUTES
        new, expected = seen[seen["known_at"] == closed], whole.get(closed, seen.iloc[:0])
        assert new.to_numpy().tolist() == expected.to_numpy().tolist(), closed

def test_a_higher_candle_is_seen_only_when_it_has_closed(ether):
    candles = ether.iloc[:8000]
    assert_causal_events(lambda c: detect_timeframes(by_timeframe(c)), candles, FIVE_MINUTES, cuts=50, first=600)

@pytest.mark.parametrize("kind", KINDS)
def test_a_peek_of_one_candle_is_caught(bitcoin, kind):
    candles = bitcoin.iloc[:6000]
    def peek(c):
        patterns = detect_patterns(c)
        early = patterns["known_at"].where(patterns["kind"] != kind, patterns["known_at"] - FIVE_MINUTES)
        return patterns.assign(known_at=early).sort_values("known_at", kind="stable", ignore_index=True)
    with pytest.raises(LookAheadError): assert_causal_events(peek, candles, FIVE_MINUTES, cuts=200, first=500)

def test_what_comes_later_cannot_change_what_was_known(bitcoin):
    candles = bitcoin.iloc[:5000]
    generator = np.random.default_rng(0)
    for end in random_cuts(len(candles), 50, seed=1, first=500):
        poisoned = candles.copy()
        poisoned.iloc[end:, :4] = candles["close"].iloc[end] * generator.uniform(0.2, 5, (len(candles) - end, 1))
        closed = candles.index[end - 1] + FIVE_MINUTES
        pd.testing.assert_frame_equal(known_before(detect_patterns(poisoned), closed), known_before(detect_patterns(candles), closed))

def features_of(candles): return smc_features(candles, detect_timeframes(by_timeframe(candles)))

def test_no_feature_looks_ahead(bitcoin):
    assert_causal(features_of, bitcoin.iloc[30_000:42_000], cuts=50, first=longest_lookback())

def test_the_row_computed_live_is_the_row_seen_in_training(ether):
    assert_parity(features_of, ether.iloc[50_000:66_000], longest_lookback(), cuts=50)

@pytest.mark.parametrize("name", FEATURES)
def test_a_feature_shifted_by_one_candle_is_caught(bitcoin, name):
    def peek(candles): return features_of(candles)[[name]].shift(-1)
    with pytest.raises(LookAheadError): assert_causal(peek, bitcoin.iloc[:longest_lookback() + 600], cuts=2, first=longest_lookback() + 100)

def test_labels_enter_at_the_next_open_and_end_later(bitcoin):
    candles = bitcoin.iloc[:20_000]
    labels = label_patterns(candles, detect_timeframes(by_timeframe(candles)), "BTCUSDT")
    assert len(labels) > 500
    assert (labels["time"] == labels["entry_at"]).all() and (labels["known_at"] <= labels["time"]).all() and (labels["exit_at"] > labels["entry_at"]).all()
    assert (labels["entry"] == candles["open"].loc[labels["entry_at"]].to_numpy()).all()

def test_a_decision_is_the_same_when_the_outcome_is_unknown(bitcoin):
    "Entry, stop and target of a trade use nothing after its entry."
    candles = bitcoin.iloc[:8000]
    decided = ["kind", "direction", "known_at", "time", "entry", "stop", "target"]
    whole = label_patterns(candles, detect_timeframes(by_timeframe(candles)), "BTCUSDT")
    for end in random_cuts(len(candles), 50, seed=2, first=1500):
        seen = label_patterns(candles.iloc[:end], detect_timeframes(by_timeframe(candles.iloc[:end])), "BTCUSDT")
        same = whole[whole["exit_at"] <= candles.index[end - 1]]
        merged = same[decided].merge(seen[decided], how="left", indicator=True)
        assert (merged["_merge"] == "both").all()
