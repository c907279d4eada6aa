"""What every splitter promises, on labels that hypothesis makes up, and two other libraries' answers.

The labels are in any order, of several symbols, with holes.
"""

from math import comb
from time import perf_counter

import numpy as np
import pandas as pd
import purgedcv
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score

from smc_ml.labels.splits import (
    EMBARGOED,
    PURGED,
    TEST,
    TRAIN,
    UNUSED,
    CombinatorialPurged,
    PurgedKFold,
    PurgedSplitter,
    PurgedWalkForward,
    SplitError,
)

START, NONE = pd.Timestamp("2024-01-01", tz="UTC"), pd.Timedelta(0)


def labels_of(
    count: int, seed: int, days: int = 60, longest: int = 288, symbols: int = 3, hole_days: int = 0
) -> pd.DataFrame:
    "Random trades in random order; a hole lies in the middle, and trades begun before it may end behind it."
    random = np.random.default_rng(seed)
    minutes = random.integers(0, days * 288, count) * 5
    behind = minutes >= days * 720
    begin = START + pd.to_timedelta(minutes + behind * hole_days * 1440, unit="min")
    longer = np.where(~behind & (random.random(count) < 0.05), hole_days * 1440, 0)
    return pd.DataFrame(
        {
            "symbol": random.choice(["BTC", "ETH", "SOL"][:symbols], count),
            "time": begin,
            "exit_at": begin
            + pd.to_timedelta(random.integers(0, longest + 1, count) * 5 + longer, unit="min"),
        }
    )


def hourly(count: int, length: str) -> pd.DataFrame:
    "One trade an hour, all equally long."
    times = pd.date_range(START, periods=count, freq="1h")
    return pd.DataFrame({"time": times, "exit_at": times + pd.Timedelta(length)})


def touching(labels: pd.DataFrame, train: np.ndarray, test: np.ndarray, embargo: pd.Timedelta) -> np.ndarray:
    """For each training trade, how many test trades come within the embargo of its [time, exit_at].

    Both ends are included.
    """
    known, judged = labels.iloc[train], labels.iloc[test]
    begun = np.searchsorted(
        np.sort(judged["time"].to_numpy()), (known["exit_at"] + embargo).to_numpy(), side="right"
    )
    over = np.searchsorted(
        np.sort(judged["exit_at"].to_numpy()), (known["time"] - embargo).to_numpy(), side="left"
    )
    return begun - over


hours = st.integers(0, 48).map(lambda count: pd.Timedelta(count, "h"))
walks = st.builds(
    PurgedWalkForward,
    st.integers(1, 5),
    st.floats(0.2, 0.7),
    hours,
    st.none() | st.integers(5, 40).map(lambda count: pd.Timedelta(count, "D")),
)
folds = st.builds(PurgedKFold, st.integers(2, 6), hours)
groups = st.integers(3, 6).flatmap(
    lambda count: st.builds(CombinatorialPurged, st.just(count), st.integers(1, count - 1), hours)
)
tables = st.builds(
    labels_of,
    st.integers(60, 400),
    st.integers(0, 2**31),
    longest=st.integers(0, 400),
    symbols=st.integers(1, 3),
    hole_days=st.sampled_from([0, 0, 3, 20]),
)


def folds_of(splitter: PurgedSplitter, labels: pd.DataFrame) -> list[tuple[np.ndarray, np.ndarray]]:
    "All folds, where there is enough for each of them."
    try:
        return list(splitter.split(labels))
    except SplitError:
        assume(False)


@settings(max_examples=80, deadline=None)
@given(walks | folds | groups, tables)
def test_no_training_trade_comes_within_the_embargo_of_a_test_trade(splitter, labels):
    for train, test in folds_of(splitter, labels):
        assert touching(labels, train, test, splitter.embargo).max() <= 0
        assert not set(labels["time"].iloc[train]) & set(labels["time"].iloc[test])  # one moment, one side


@settings(max_examples=60, deadline=None)
@given(walks | folds | groups, tables)
def test_nothing_is_left_out_without_a_reason(splitter, labels):
    folds_of(splitter, labels)
    edges, begin, end = splitter.edges(labels), labels["time"], labels["exit_at"]
    for tested, roles in zip(splitter._tested(), splitter.roles(labels), strict=True):
        near, test = np.flatnonzero(roles == EMBARGOED), np.flatnonzero(roles == TEST)
        assert not (touching(labels, near, test, NONE) > 0).any()
        spans = [
            (edges[slice_], end[(begin >= edges[slice_]) & (begin < edges[slice_ + 1])].max())
            for slice_ in tested
        ]
        for role, distance in ((PURGED, NONE), (EMBARGOED, splitter.embargo)):
            out = labels[roles == role]
            assert all(
                any(
                    trade.exit_at + distance >= first and trade.time <= last + distance
                    for first, last in spans
                )
                for trade in out.itertuples()
            )
        unused = labels[roles == UNUSED]
        if isinstance(splitter, PurgedWalkForward):
            early = spans[0][0] - (splitter.train_span or pd.Timedelta(10_000, "D"))
            assert ((unused["time"] >= spans[0][0]) | (unused["time"] < early)).all()
            assert labels["time"][roles == TRAIN].min() >= early
        else:
            assert unused.empty


@settings(max_examples=40, deadline=None)
@given(folds, tables)
def test_k_folds_test_every_event_once(splitter, labels):
    tested = np.concatenate([test for _, test in folds_of(splitter, labels)])
    assert np.array_equal(np.sort(tested), np.arange(len(labels)))


@settings(max_examples=40, deadline=None)
@given(groups, tables)
def test_every_path_judges_every_event_once_and_by_a_fold_that_tests_it(splitter, labels):
    n, k = splitter.n_groups, splitter.n_test
    found = folds_of(splitter, labels)
    assert len(found) == splitter.get_n_splits() == comb(n, k) and splitter.paths().shape == (
        comb(n - 1, k - 1),
        n,
    )
    histories = splitter.assemble([fold * 1000.0 + test for fold, (_, test) in enumerate(found)], labels)
    assert np.isfinite(histories).all() and np.array_equal(
        histories % 1000, np.tile(np.arange(len(labels)), (len(histories), 1))
    )
    for event, judges in enumerate((histories // 1000).astype(int).T):
        assert judges.tolist() == [fold for fold, (_, test) in enumerate(found) if event in test]


@settings(max_examples=40, deadline=None)
@given(walks | folds | groups, tables, st.integers(0, 1000))
def test_the_order_of_the_rows_does_not_matter(splitter, labels, seed):
    order = np.random.default_rng(seed).permutation(len(labels))
    for (train, test), (mixed_train, mixed_test) in zip(
        folds_of(splitter, labels), splitter.split(labels.iloc[order]), strict=True
    ):
        assert set(order[mixed_train]) == set(train) and set(order[mixed_test]) == set(test)


def test_a_trade_that_ends_behind_a_hole_is_purged_like_any_other():
    before = pd.DataFrame({"time": pd.date_range(START, periods=48, freq="1h")})
    behind = before + pd.Timedelta("6D")  # four days without candles; the boundary of two folds lies in them
    labels = pd.concat([before, behind], ignore_index=True)
    labels["exit_at"] = labels["time"] + pd.Timedelta("1h")
    labels.loc[40, "exit_at"] = START + pd.Timedelta("6D 5h")  # begun before the hole, ended behind it
    walk, two = PurgedWalkForward(1, 0.5, NONE), PurgedKFold(2, NONE)
    assert START + pd.Timedelta("2D") < two.edges(labels)[1] < START + pd.Timedelta("6D")
    ((train, test),) = walk.split(labels)
    assert set(train) == set(range(48)) - {40} and test.tolist() == list(range(48, 96))
    (later, _), (earlier, _) = two.split(labels)
    assert set(earlier) == set(range(48)) - {40}
    assert later.tolist() == list(
        range(54, 96)
    )  # trades from 06:00 on; those to 05:00 ran beside the long one
    with pytest.raises(
        SplitError, match=r"fold 1 \(test from 2024-01-02 .* has no test events: use fewer folds"
    ):
        list(PurgedKFold(4, NONE).split(labels))


# ---- scikit-learn


def test_a_nested_search_purges_inside_and_outside():
    labels, random = labels_of(500, 3), np.random.default_rng(0)
    features, won, seen = random.normal(size=(500, 2)), random.integers(0, 2, 500), []

    class Watched(PurgedKFold):
        def split(self, X, y=None, groups=None):
            for train, test in super().split(X, y, groups):
                seen.append(touching(groups, train, test, self.embargo).max())
                yield train, test

    for train, test in PurgedWalkForward(2, 0.4, NONE).split(features, won, labels):
        search = GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=Watched(3, pd.Timedelta("6h")))
        search.fit(features[train], won[train], groups=labels.iloc[train])
        assert 0 <= search.score(features[test], won[test]) <= 1
    assert len(seen) == 6 and max(seen) <= 0


def test_k_folds_serve_predictions_out_of_sample():
    labels, random = labels_of(300, 4), np.random.default_rng(1)
    features, won = random.normal(size=(300, 2)), random.integers(0, 2, 300)
    predicted = cross_val_predict(
        LogisticRegression(), features, won, groups=labels, cv=PurgedKFold(4, NONE), method="predict_proba"
    )[:, 1]
    for train, test in PurgedKFold(4, NONE).split(labels):
        assert np.allclose(
            predicted[test],
            LogisticRegression().fit(features[train], won[train]).predict_proba(features[test])[:, 1],
            atol=1e-12,
        )


def test_without_the_purge_a_score_on_noise_looks_like_skill_and_with_it_does_not():
    """Forty neighbours share one coin and are open together: who trains on some of them knows the others.

    Once they are purged nothing is left to know.
    """
    from sklearn.model_selection import KFold
    from sklearn.neighbors import KNeighborsClassifier

    labels, coins = hourly(2000, "40h"), np.repeat(np.random.default_rng(5).integers(0, 2, 50), 40)
    clock = np.arange(2000.0)[:, None]
    leaking = cross_val_score(
        KNeighborsClassifier(5), clock, coins, cv=KFold(5, shuffle=True, random_state=0)
    ).mean()
    purged = cross_val_score(
        KNeighborsClassifier(5), clock, coins, groups=labels, cv=PurgedKFold(5, pd.Timedelta("40h"))
    ).mean()
    assert leaking > 0.9 and abs(purged - 0.5) < 0.15


# ---- other libraries


@pytest.mark.parametrize("length, embargo", [("1h", "0h"), ("5h", "0h"), ("3h", "4h")])
def test_purgedcv_finds_the_same_folds_and_paths(length, embargo):
    """One event at a time makes its slices of equal counts ours of equal time.

    Its spans are half-open and its embargo one-sided: hence the nanosecond and the padding.
    """
    labels, embargo = hourly(120, length), pd.Timedelta(embargo)
    times = dict(
        prediction_times=labels["time"],
        evaluation_times=labels["exit_at"] + pd.Timedelta(1, "ns"),
        purge_horizon=embargo,
    )
    pairs = [
        (PurgedKFold(6, embargo), purgedcv.PurgedKFold(6, **times)),
        (CombinatorialPurged(6, 2, embargo), purgedcv.CombinatorialPurgedCV(6, 2, **times)),
        (PurgedWalkForward(4, 1 / 3, embargo), purgedcv.WalkForwardSplit(4, test_size=20, **times)),
    ]
    for ours, theirs in pairs:
        for (train, test), (other_train, other_test) in zip(
            ours.split(labels), theirs.split(labels), strict=True
        ):
            assert np.array_equal(test, other_test) and np.array_equal(train, other_train)
    ours, theirs = pairs[1]
    values = [
        np.random.default_rng(fold).normal(size=len(test))
        for fold, (_, test) in enumerate(ours.split(labels))
    ]
    assert np.array_equal(ours.assemble(values, labels), theirs.reconstruct_paths(values))


# skfolio 1.12.2, CombinatorialPurgedCV(n_folds=6, n_test_folds=2, purged_size=3) on 60 rows:
# `recombined_paths.T`, the sizes of the training sets, and the eighth of them
SKFOLIO_PATHS = [
    [0, 0, 1, 2, 3, 4],
    [1, 5, 5, 6, 7, 8],
    [2, 6, 9, 9, 10, 11],
    [3, 7, 10, 12, 12, 13],
    [4, 8, 11, 13, 14, 14],
]
SKFOLIO_SIZES = [37, 31, 31, 31, 34, 34, 28, 28, 31, 34, 28, 31, 34, 31, 37]
SKFOLIO_EIGHTH = [*range(7), *range(23, 37), *range(53, 60)]


def test_skfolio_finds_the_same_folds_and_paths():
    "Its purge counts rows: three rows are what trades of three hours, one an hour, overlap."
    splitter = CombinatorialPurged(6, 2, NONE)
    trained = [train.tolist() for train, _ in splitter.split(hourly(60, "3h"))]
    assert (
        splitter.paths().tolist() == SKFOLIO_PATHS
        and [len(train) for train in trained] == SKFOLIO_SIZES
        and trained[7] == SKFOLIO_EIGHTH
    )


# ---- speed


def test_a_split_of_a_hundred_thousand_events_takes_milliseconds():
    labels = labels_of(100_000, 0, days=1000)
    for splitter in (
        PurgedWalkForward(10, 0.3, NONE),
        PurgedKFold(10, NONE),
        CombinatorialPurged(10, 2, NONE),
    ):
        seconds = []
        for _ in range(3):
            begun = perf_counter()
            count = sum(1 for _ in splitter.split(labels))
            seconds.append((perf_counter() - begun) / count)
        assert min(seconds) < 0.05, f"{type(splitter).__name__}: {min(seconds) * 1000:.0f} ms a split"
