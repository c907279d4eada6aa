"""No training trade overlaps the trades it is judged with; on two real markets, for every way of splitting."""
import numpy as np
import pandas as pd
import pytest
from conftest import by_timeframe
from hypothesis import given, settings, strategies as st
from smc_ml.labels.outcomes import label_symbols
from smc_ml.patterns.detection import detect_timeframes
from smc_ml.splits import CombinatorialPurged, PurgedKFold, PurgedSplitter, PurgedWalkForward, SplitError

HOUR = pd.Timedelta("1h")
SPLITTERS = [PurgedWalkForward(5, 0.3, HOUR), PurgedWalkForward(5, 0.3, HOUR, train_span=pd.Timedelta("30D")), PurgedKFold(5, HOUR), CombinatorialPurged(6, 2, HOUR)]

@pytest.fixture(scope="module")
def labels(bitcoin, ether) -> pd.DataFrame:
    candles = {"BTCUSDT": bitcoin.iloc[:40_000], "ETHUSDT": ether.iloc[:40_000]}
    return label_symbols(candles, {symbol: detect_timeframes(by_timeframe(series)) for symbol, series in candles.items()})

def overlapping(labels: pd.DataFrame, train: np.ndarray, test: np.ndarray, embargo: pd.Timedelta) -> int:
    "Training trades that share a moment, embargo included, with any trade they judge: counted by brute force over the union of the test trades."
    begin, end = labels["time"].iloc[test].to_numpy(), labels["exit_at"].iloc[test].to_numpy()
    order = np.argsort(begin)
    begin, latest = begin[order], np.maximum.accumulate(end[order])
    started = np.searchsorted(begin, (labels["exit_at"].iloc[train] + embargo).to_numpy(), side="right") - 1   # the last test trade that began before this one was over
    return int(((started >= 0) & (latest[np.maximum(started, 0)] >= (labels["time"].iloc[train] - embargo).to_numpy())).sum())

@pytest.mark.parametrize("splitter", SPLITTERS, ids=repr)
def test_no_training_label_overlaps_a_test_label(labels, splitter):
    for train, test in splitter.split(labels):
        assert len(train) and len(test) and not set(train) & set(test)
        assert overlapping(labels, train, test, splitter.embargo) == 0
        assert set(labels.iloc[test]["symbol"]) == {"BTCUSDT", "ETHUSDT"}

@pytest.mark.parametrize("splitter", SPLITTERS, ids=repr)
def test_without_the_purge_they_would_overlap(labels, splitter):
    assert sum(overlapping(labels, np.setdiff1d(np.arange(len(labels)), test), test, pd.Timedelta(0)) for _, test in splitter.split(labels)) > 0

def test_every_event_is_tested_as_often_as_promised(labels):
    tested = lambda splitter: np.bincount(np.concatenate([test for _, test in splitter.split(labels)]), minlength=len(labels))
    walked = tested(SPLITTERS[0])
    assert (walked[walked.argmax():] == 1).all() and walked[:walked.argmax()].sum() == 0
    assert (tested(PurgedKFold(5, HOUR)) == 1).all() and (tested(CombinatorialPurged(6, 2, HOUR)) == 5).all()

def test_walk_forward_trains_on_the_past_alone(labels):
    for train, test in SPLITTERS[0].split(labels): assert labels["exit_at"].iloc[train].max() + HOUR < labels["time"].iloc[test].min()

@pytest.mark.parametrize("splitter", SPLITTERS, ids=repr)
def test_the_order_of_the_rows_does_not_matter(labels, splitter):
    shuffled = labels.sample(frac=1, random_state=0)
    for (train, test), (other_train, other_test) in zip(splitter.split(labels), splitter.split(shuffled)):
        assert set(labels.index[train]) == set(shuffled.index[other_train]) and set(labels.index[test]) == set(shuffled.index[other_test])

def test_a_trade_that_ends_beyond_a_hole_is_purged_like_any_other():
    times = pd.date_range("2024-01-01", periods=40, freq="1D", tz="UTC")
    labels = pd.DataFrame({"time": times, "exit_at": times + HOUR}).drop(index=range(18, 22)).reset_index(drop=True)
    before = PurgedWalkForward(1, 0.5, pd.Timedelta(0)).split(labels)
    stretched = labels.assign(exit_at=labels["exit_at"].mask(labels.index == 17, times[25]))
    after = PurgedWalkForward(1, 0.5, pd.Timedelta(0)).split(stretched)
    assert set(next(before)[0]) - set(next(after)[0]) == {17}

@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 200)), min_size=30, max_size=120), st.integers(2, 5), st.integers(0, 40))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_made_up_labels_never_overlap_either(rows, folds, embargo):
    start = pd.Timestamp("2024-01-01", tz="UTC")
    labels = pd.DataFrame({"time": [start + begin * HOUR for begin, _ in rows], "exit_at": [start + (begin + length) * HOUR for begin, length in rows]})
    splitters: list[PurgedSplitter] = [PurgedWalkForward(folds, 0.4, embargo * HOUR), PurgedKFold(folds, embargo * HOUR), CombinatorialPurged(folds + 1, 2, embargo * HOUR)]
    for splitter in splitters:
        try: parts = list(splitter.split(labels))
        except SplitError: continue                       # too little history for so many folds is said, not split
        for train, test in parts: assert overlapping(labels, train, test, splitter.embargo) == 0
