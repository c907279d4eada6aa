"""Nothing looks ahead: labels and features on real candles, with the future taken away."""

import pytest
from conftest import by_timeframe

from smc_ml.candles import TIMEFRAMES
from smc_ml.causality import LookAheadError, assert_causal, assert_parity, random_cuts
from smc_ml.features.table import declared_features, longest_lookback, smc_features
from smc_ml.labels.outcomes import label_patterns
from smc_ml.patterns.detection import detect_timeframes

FIVE_MINUTES = TIMEFRAMES["5m"]


def features_of(candles):
    return smc_features(candles, detect_timeframes(by_timeframe(candles)))


def test_no_feature_looks_ahead(bitcoin):
    assert_causal(features_of, bitcoin.iloc[30_000:42_000], cuts=50, first=longest_lookback(wanted=["smc"]))


def test_the_row_computed_live_is_the_row_seen_in_training(ether):
    assert_parity(features_of, ether.iloc[50_000:66_000], longest_lookback(wanted=["smc"]), cuts=50)


@pytest.mark.parametrize("name", [declared.name for declared in declared_features(wanted=["smc"])])
def test_a_feature_shifted_by_one_candle_is_caught(bitcoin, name):
    def peek(candles):
        return features_of(candles)[[name]].shift(-1)

    with pytest.raises(LookAheadError):
        assert_causal(
            peek,
            bitcoin.iloc[: longest_lookback(wanted=["smc"]) + 600],
            cuts=2,
            first=longest_lookback(wanted=["smc"]) + 100,
        )


def test_labels_enter_at_the_next_open_and_end_later(bitcoin):
    candles = bitcoin.iloc[:20_000]
    labels = label_patterns(candles, detect_timeframes(by_timeframe(candles)), "BTCUSDT")
    assert len(labels) > 500
    assert (
        (labels["time"] == labels["entry_at"]).all()
        and (labels["known_at"] <= labels["time"]).all()
        and (labels["exit_at"] > labels["entry_at"]).all()
    )
    assert (labels["entry"] == candles["open"].loc[labels["entry_at"]].to_numpy()).all()


def test_a_decision_is_the_same_when_the_outcome_is_unknown(bitcoin):
    "Entry, stop and target of a trade use nothing after its entry."
    candles = bitcoin.iloc[:8000]
    decided = ["kind", "direction", "known_at", "time", "entry", "stop", "target"]
    whole = label_patterns(candles, detect_timeframes(by_timeframe(candles)), "BTCUSDT")
    for end in random_cuts(len(candles), 50, seed=2, first=1500):
        seen = label_patterns(
            candles.iloc[:end], detect_timeframes(by_timeframe(candles.iloc[:end])), "BTCUSDT"
        )
        same = whole[whole["exit_at"] <= candles.index[end - 1]]
        merged = same[decided].merge(seen[decided], how="left", indicator=True)
        assert (merged["_merge"] == "both").all()
