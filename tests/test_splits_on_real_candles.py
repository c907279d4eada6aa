"""No training trade is still open when the trades it is judged with begin; on two real markets."""
import pandas as pd
import pytest
from conftest import by_timeframe
from smc_ml.labels.outcomes import label_symbols
from smc_ml.patterns.detection import detect_timeframes
from smc_ml.splits import PurgedWalkForward

@pytest.fixture(scope="module")
def labels(bitcoin, ether) -> pd.DataFrame:
    candles = {"BTCUSDT": bitcoin.iloc[:40_000], "ETHUSDT": ether.iloc[:40_000]}
    return label_symbols(candles, {symbol: detect_timeframes(by_timeframe(series)) for symbol, series in candles.items()})

@pytest.mark.parametrize("embargo", ["0min", "60min", "1D"])
def test_no_training_label_overlaps_a_test_label(labels, embargo):
    embargo, judged = pd.Timedelta(embargo), []
    for fold, train, test in PurgedWalkForward(5, 0.3, embargo).split(labels):
        known, later = labels.iloc[train], labels.iloc[test]
        assert known["exit_at"].max() + embargo < later["time"].min()
        assert set(later["symbol"]) == {"BTCUSDT", "ETHUSDT"}
        judged += test.tolist()
    assert judged == list(range(judged[0], len(labels)))   # every later event is judged once

def test_without_the_purge_they_would_overlap(labels):
    overlapping = 0
    for fold, train, test in PurgedWalkForward(5, 0.3, pd.Timedelta(0)).split(labels):
        start = labels.iloc[test]["time"].min()
        still_open = labels.index[(labels["time"] < start) & (labels["exit_at"] >= start)]
        assert not set(still_open) & set(train)
        overlapping += len(still_open)
    assert overlapping > 0
