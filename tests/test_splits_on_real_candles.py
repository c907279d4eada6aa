"""No training trade is still open while the trades it is judged with are, on two real markets.

None comes nearer than the embargo.
"""

import numpy as np
import pandas as pd
import purgedcv
import pytest
from conftest import by_timeframe
from test_splits_on_random_labels import touching

from smc_ml.candles import Market
from smc_ml.labels.outcomes import label_symbols
from smc_ml.labels.splits import (
    EMBARGOED,
    PURGED,
    CombinatorialPurged,
    PurgedKFold,
    PurgedWalkForward,
    purged_before,
    split_counts,
)
from smc_ml.patterns.detection import detect_timeframes

SPLITTERS = {
    "expanding": lambda embargo: PurgedWalkForward(5, 0.3, embargo),
    "rolling": lambda embargo: PurgedWalkForward(5, 0.3, embargo, pd.Timedelta("60D")),
    "k folds": lambda embargo: PurgedKFold(10, embargo),
    "combinations": lambda embargo: CombinatorialPurged(6, 2, embargo),
}


@pytest.fixture(scope="module")
def labels(bitcoin, ether) -> pd.DataFrame:
    "A year of trades of two markets, in no order."
    candles = Market({"BTCUSDT": bitcoin, "ETHUSDT": ether}, "5m")
    table = label_symbols(
        candles, {symbol: detect_timeframes(by_timeframe(series)) for symbol, series in candles.items()}
    )
    return table[table["exit_at"].notna()].sample(frac=1, random_state=0).reset_index(drop=True)


@pytest.mark.parametrize("embargo", ["0min", "60min", "1D"])
@pytest.mark.parametrize("name", SPLITTERS)
def test_no_training_label_overlaps_a_test_label(labels, name, embargo):
    splitter = SPLITTERS[name](pd.Timedelta(embargo))
    for train, test in splitter.split(labels):
        assert touching(labels, train, test, splitter.embargo).max() <= 0
        assert all(labels["symbol"].iloc[side].nunique() == 2 for side in (train, test))
        assert not np.intersect1d(
            labels["time"].to_numpy("datetime64[ns]")[train], labels["time"].to_numpy("datetime64[ns]")[test]
        ).size


@pytest.mark.parametrize("name", SPLITTERS)
def test_without_the_purge_they_would_overlap(labels, name):
    splitter, overlapping, close = SPLITTERS[name](pd.Timedelta("60min")), 0, 0
    for roles, (_, test) in zip(splitter.roles(labels), splitter.split(labels), strict=True):
        purged, embargoed = np.flatnonzero(roles == PURGED), np.flatnonzero(roles == EMBARGOED)
        overlapping += (touching(labels, purged, test, pd.Timedelta(0)) > 0).sum()
        close += (touching(labels, embargoed, test, splitter.embargo) > 0).sum()
        assert not (touching(labels, embargoed, test, pd.Timedelta(0)) > 0).any()
    assert overlapping > 0 and close > 0


def test_every_later_event_is_judged_once_by_what_had_ended_before(labels):
    splitter, judged = PurgedWalkForward(5, 0.3, pd.Timedelta("60min")), []
    for start, (train, test) in zip(splitter.edges(labels)[:-1], splitter.split(labels), strict=True):
        assert np.array_equal(train, purged_before(labels, start, splitter.embargo))
        assert labels["exit_at"].iloc[train].max() + splitter.embargo < labels["time"].iloc[test].min()
        judged += test.tolist()
    assert sorted(judged) == np.flatnonzero(labels["time"] >= splitter.edges(labels)[0]).tolist()


def test_the_parts_of_a_fold_make_up_the_year(labels):
    for make in SPLITTERS.values():
        counts = split_counts(make(pd.Timedelta("60min")), labels)
        assert (counts[["unused", "train", "purged", "embargoed", "test"]].sum(axis=1) == len(labels)).all()
        assert (counts[["purged", "embargoed"]].sum(axis=1) < 0.05 * len(labels)).all() and (
            counts["train"] > 0
        ).all()


@pytest.mark.parametrize("name", ["k folds", "combinations"])
def test_purgedcv_purges_the_same_trades(labels, name):
    """Its purge looks at every pair of trades.

    Ours also drops what ends between the edge of a slice and the first event in it.
    """
    splitter, order = SPLITTERS[name](pd.Timedelta("60min")), np.arange(len(labels))
    for tested, (train, test) in zip(splitter._tested(), splitter.split(labels), strict=True):
        kept = purgedcv.purge(
            np.setdiff1d(order, test),
            test,
            labels["time"],
            labels["exit_at"] + pd.Timedelta(1, "ns"),
            purge_horizon=splitter.embargo,
        )
        assert set(train) <= set(kept)
        for trade in labels.iloc[np.setdiff1d(kept, train)].itertuples():
            assert any(
                start <= trade.exit_at + splitter.embargo < labels["time"][labels["time"] >= start].min()
                for start in splitter.edges(labels)[list(tested)]
            )
