"""The ensemble on real candles, on markets with a planted edge and without; streams of all methods."""

from functools import cache
from itertools import chain
from time import process_time

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from smc_ml.candles import Market
from smc_ml.ensemble.config import EnsembleConfig
from smc_ml.ensemble.conformal import adaptive_bounds, coverage_by
from smc_ml.ensemble.context import event_context
from smc_ml.ensemble.estimator import Ensemble
from smc_ml.ensemble.league import all_mixtures, beaten_by, league, simplest_unbeaten
from smc_ml.ensemble.members import Members, align_members
from smc_ml.ensemble.methods import ENSEMBLE_METHODS
from smc_ml.ensemble.releases import releases_of
from smc_ml.labels.config import SplitsConfig
from smc_ml.models.config import TrainingConfig
from smc_ml.simulation.config import SimulationConfig
from smc_ml.simulation.market import simulate_market
from smc_ml.stages.learning import events_of, predictions_of

CHEAP = TrainingConfig(models=("logistic", "xgboost", "lightgbm"), features=("smc",), steps=1)


def members_of(market: Market, splits: SplitsConfig) -> tuple[Members, pd.DataFrame, pd.DataFrame]:
    "Three cheap models out of fold, side by side; their predictions and the labels."
    events = events_of(market, wanted=CHEAP.features)
    tables = [predictions_of(name, events, CHEAP, splits) for name in CHEAP.models]
    predictions = pd.concat(tables, ignore_index=True)
    context = event_context(events.labels, events.market)
    return align_members(predictions, events.labels, context), predictions, events.labels


@cache
def simulated(edge: float, seed: int) -> tuple[Members, pd.DataFrame, pd.DataFrame]:
    "Members of one symbol over four months."
    made = simulate_market(["A"], "2024-01-01", "2024-05-01", SimulationConfig(edge=edge, seed=seed))
    return members_of(Market({"A": made["A"].candles}, "5m"), SplitsConfig(n_folds=3))


@pytest.fixture(scope="module")
def real_year(bitcoin, ether) -> tuple[Members, pd.DataFrame, pd.DataFrame]:
    "Bitcoin and Ether in 2023, of which all but the first weeks are judged."
    market = Market({"BTCUSDT": bitcoin, "ETHUSDT": ether}, "5m")
    return members_of(market, SplitsConfig(n_folds=8, first_train_share=0.08))


@pytest.mark.slow
@pytest.mark.parametrize("method", ("mean", "past_log_loss", "hedge"))
def test_intervals_cover_what_they_say_in_every_quarter_of_a_real_year(method, real_year):
    members, *_ = real_year
    mixed = all_mixtures(members, methods=[method])[method]
    bounds = adaptive_bounds(mixed.expected_r, members.realised_r, releases_of(members))
    table = coverage_by(members.events, bounds, members.realised_r)
    print(table.round(3).to_string())
    assert len(table) == 5 and (table["events"] > 1000).all()
    assert table["covered"].between(0.87, 0.93).all(), table


SEEDS = range(20)


def standings(edge: float) -> pd.DataFrame:
    "The league of each market, and what its rule chose."
    rows = []
    for seed in SEEDS:
        members, _, labels = simulated(edge, seed)
        mixtures = all_mixtures(members)
        table = league(members, mixtures, labels).assign(seed=seed)
        rows.append(table.assign(chosen=simplest_unbeaten(beaten_by(members, mixtures))))
    return pd.concat(rows, ignore_index=True)


@pytest.mark.slow
def test_on_planted_markets_the_ensemble_does_not_lose_to_the_plain_mean():
    table = standings(0.4)
    means = table.groupby("name", sort=False)[["log_loss_gain", "over_best", "over_mean"]].mean()
    lost = (table["over_mean_high"] < 0).groupby(table["name"]).sum()
    print((1000 * means).round(2).assign(lost=lost).to_string())
    print(table.groupby("seed")["chosen"].first().value_counts())
    gains = table.loc[table["name"] == "mean", "log_loss_gain"]
    assert gains.mean() > 3 * gains.std() / np.sqrt(len(gains)), gains  # there is something to combine
    for name in ("mean", "past_log_loss", "hedge", "fixed_share"):
        assert lost[name] <= 2 and means.loc[name, "over_mean"] > -0.0002, name
    chosen = table[table["name"] == table["chosen"]]
    assert (chosen["over_mean_high"] < 0).sum() == 0


@pytest.mark.slow
def test_on_null_markets_no_average_shows_an_edge():
    table = standings(0.0)
    shown = (table["log_loss_gain_low"] > 0).groupby(table["name"], sort=False).sum()
    print(shown.to_string())
    assert shown[["mean", "past_log_loss", "hedge", "fixed_share", "bayesian"]].max() <= 2
    assert shown.max() <= 3  # of twenty, with eighteen names to choose from


@pytest.mark.slow
@pytest.mark.parametrize("method", ENSEMBLE_METHODS)
def test_a_stream_of_events_says_what_one_walk_says(method):
    members, predictions, labels = simulated(0.4, 0)
    keys = ["symbol", "time", "event_id"]
    events = labels.merge(members.events[keys]).sort_values(["time", "symbol", "event_id"], ignore_index=True)
    context = event_context(events)
    first, last = len(events) - 60, len(events)
    known = predictions.merge(events[keys].iloc[:first])
    blank = Ensemble(method, EnsembleConfig(minimum_events=200, refit_events=200))
    stream, waiting, said = clone(blank).fit(known, events.iloc[:first], context), events.iloc[first:last], []
    for row in range(first, last):
        now = events["time"].iloc[row]
        over = waiting[waiting["exit_at"] <= now].sort_values("exit_at")
        for place in range(len(over)):
            stream.update(over.iloc[[place]])
        waiting = waiting[waiting["exit_at"] > now]
        said.append(stream.observe(predictions.merge(events[keys].iloc[[row]]), context))
    whole = clone(blank).fit(predictions, events, context)
    batch = whole.predictions(predictions.merge(events[keys].iloc[first:last]), context)
    found = pd.concat(said, ignore_index=True)
    pd.testing.assert_frame_equal(
        found.drop(columns="weights"), batch.drop(columns="weights"), check_exact=True
    )
    assert found["weights"].tolist() == batch["weights"].tolist()
    both = chain(found["weights"], batch["weights"])
    assert np.isfinite([value for one in both for value in one.values()]).all()


@pytest.mark.slow
@pytest.mark.parametrize("method", ("mean", "past_log_loss", "hedge"))
def test_an_event_and_its_outcome_cost_little_after_a_long_history(method):
    random, count = np.random.default_rng(0), 20_000
    time = pd.date_range("2024-01-01", periods=count, freq="5min", tz="UTC")
    labels = pd.DataFrame({"symbol": "A", "time": time, "event_id": range(count)})
    labels = labels.assign(exit_at=time + pd.Timedelta("2h"), won=random.random(count) < 0.4, realised_r=1.0)
    keys = labels[["symbol", "time", "event_id"]].assign(expected_r=0.0)
    said = {name: random.uniform(0.2, 0.6, count) for name in ("a", "b", "c")}
    tables = [keys.assign(model=name, probability=one) for name, one in said.items()]
    predictions = pd.concat(tables, ignore_index=True)
    first = count - 100
    ensemble = Ensemble(method).fit(predictions[predictions.event_id < first], labels[:first])
    spent = []
    for event in range(first, count):
        one = predictions.iloc[[event, event + count, event + 2 * count]]
        start = process_time()
        ensemble.observe(one)
        ensemble.update(labels.iloc[[event]])
        spent.append(process_time() - start)
    print(f"{method}: {1000 * np.median(spent):.2f} ms of processor time, at most {1000 * max(spent):.2f}")
    assert np.median(spent) < 0.008  # about 2 ms where nothing else runs
