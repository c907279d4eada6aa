"""The intervals of the headlines keep their word: 95 % of them hold the truth of markets without an edge.

In short on made-up trades, in every run; on whole pipelines over markets of four kinds with `make proofs`.
"""

import json
from hashlib import sha256
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy.signal import lfilter

from smc_ml.candles import Market
from smc_ml.controls.markets import mirrored_market, shuffled_market
from smc_ml.evaluation.intervals import (
    Interval,
    block_days,
    jackknife_interval,
    left_out_sums,
    mean_interval,
)
from smc_ml.evaluation.metrics import balanced_accuracy_of, mcc_of, score
from smc_ml.evaluation.overfitting import sharpe_report
from smc_ml.evaluation.verdict import carries_information, edge_shown, evidence_of
from smc_ml.models.predictions import join_outcomes
from smc_ml.provenance import code_hashes
from smc_ml.simulation.config import SimulationConfig
from smc_ml.simulation.market import simulate_market
from smc_ml.stages.calls import headlines, judge_learnt
from smc_ml.stages.kept import learn
from smc_ml.tables import plain
from smc_ml.writing import write_whole


def share_covered(intervals: list[Interval], truth: float = 0.0) -> float:
    return float(np.mean([one.low <= truth <= one.high for one in intervals]))


# In short


def trades(seed: int, days: int, longest: float, one_sided: bool) -> tuple[np.ndarray, pd.Series, pd.Series]:
    "R of trades of up to `longest` days on one path of fat-tailed steps in clusters, and their times."
    random, hours = np.random.default_rng(seed), 24 * (days + 15)
    waves = np.exp(0.01 * np.cumsum(random.normal(size=hours)))
    path = np.cumsum(random.standard_t(4, size=hours) * waves / waves.mean())
    number = random.poisson(8 * days)
    start = np.sort(random.integers(0, 24 * days, number))
    hold = np.maximum(1, (random.uniform(0.1, 1, number) * 24 * longest).astype(int))
    side = np.where(random.random(number) < (1.0 if one_sided else 0.5), 1, -1)
    time = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(pd.Series(start), unit="h")
    return (
        side * (path[start + hold] - path[start]) / np.sqrt(hold),
        time,
        time + pd.to_timedelta(hold, unit="h"),
    )


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("longest, block", [(0.5, 1), (3, 6)])
def test_the_mean_of_trades_held_for_hours_or_days_is_covered(longest, block, one_sided):
    made = [trades(seed, days, longest, one_sided) for seed in range(150) for days in (60, 120, 250)]
    assert {block_days(exits - time) for _, time, exits in made} == {block}
    assert 0.92 <= share_covered([mean_interval(*one) for one in made]) <= 0.98


def test_few_days_are_covered_where_the_percentile_bootstrap_is_too_short():
    made = [trades(seed, 12, 0.5, True) for seed in range(400)]
    assert 0.92 <= share_covered([mean_interval(*one) for one in made]) <= 0.985
    assert share_covered([percentile_bootstrap(*one[:2]) for one in made]) < 0.9


def percentile_bootstrap(values: np.ndarray, time: pd.Series, draws: int = 300) -> Interval:
    "The interval that the jackknife replaced: whole days drawn with replacement."
    day = np.unique(time.dt.floor("D"), return_inverse=True)[1]
    sums, counts = np.bincount(day, values), np.bincount(day)
    drawn = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), draws)
    return Interval(values.mean(), *np.percentile(drawn @ sums / (drawn @ counts), [2.5, 97.5]))


def blind_model(seed: int, days: int) -> pd.Series:
    "The scores of a model that knows nothing, of events that share the luck of their day."
    random, number = np.random.default_rng(seed), 25 * days
    minutes = 5 * np.sort(random.integers(0, 288 * days, number))
    day, luck = minutes // 1440, random.normal(scale=0.6, size=days)
    time = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(minutes, unit="min")
    said = 0.42 + 0.05 * random.standard_t(5, days)[day] + 0.05 * random.normal(size=number)
    won = random.random(number) < 1 / (1 + np.exp(0.32 - luck[day]))
    cost = random.uniform(0.05, 0.3, number)
    gross = np.where(won, 1.5, -1.0) * random.uniform(0.95, 1.05, number)
    events = pd.DataFrame(
        {"symbol": "ONE", "time": time, "event_id": range(number), "exit_at": time + pd.Timedelta("3h")}
    )
    labels = events.assign(won=won, gross_r=gross, realised_r=gross - cost)
    probability = np.clip(said, 0.01, 0.99)
    predictions = events.drop(columns="exit_at").assign(
        model="blind", fold=day * 4 // days, probability=probability, expected_r=2.5 * probability - 1 - cost
    )
    return score(predictions, labels).iloc[0]


def test_a_model_that_knows_nothing_is_hardly_ever_said_to_know_something():
    rows = [blind_model(seed, days) for seed in range(70) for days in (40, 80, 160)]
    for name, truth in (("auc", 0.5), ("ic", 0.0)):
        found = [Interval(row[name], row[f"{name}_low"], row[f"{name}_high"]) for row in rows]
        assert 0.92 <= share_covered(found, truth) <= 0.98, name
    assert np.mean([carries_information(evidence_of(row)) for row in rows]) <= 0.04


def counted(seed: int, days: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "Guessed wins that won and lost, guessed losses that won and lost: all, and without each day; the days."
    random = np.random.default_rng(seed)
    day = np.repeat(np.arange(days), 25)
    won = random.random(25 * days) < 1 / (1 + np.exp(0.32 - random.normal(scale=0.6, size=days)[day]))
    guess = 0.33 + 0.05 * random.standard_t(5, days)[day] + 0.05 * random.normal(size=25 * days) > 0.5
    parts = [guess & won, guess & ~won, ~guess & won, ~guess & ~won]
    return np.array([[part.sum()] for part in parts], float), left_out_sums(parts, day), day


def test_where_wins_are_rarely_guessed_balanced_accuracy_is_covered_and_mcc_would_not_be():
    made, found = [counted(seed) for seed in range(400)], {}
    for statistic, truth in ((balanced_accuracy_of, 0.5), (mcc_of, 0.0)):
        intervals = [
            jackknife_interval(statistic(whole)[0], statistic(left), day) for whole, left, day in made
        ]
        found[statistic] = share_covered(intervals, truth)
    assert 0.92 <= found[balanced_accuracy_of] <= 0.98 and found[mcc_of] < 0.91, found


# Sharpe ratios


def daily_returns(seed: int, days: int, ratio: float = 0.0) -> np.ndarray:
    "Fat-tailed daily results whose size comes in clusters; of each day their true Sharpe ratio is as given."
    random = np.random.default_rng(seed)
    sizes = np.exp(lfilter([0.25], [1, -0.85], random.normal(size=days + 50))[50:])
    true_size = np.exp(0.25**2 / (1 - 0.85**2))  # root of the mean square
    return sizes / true_size * random.standard_t(5, days) / (5 / 3) ** 0.5 + ratio


def drawn_ratio(values: np.ndarray, draws: int = 300) -> Interval:
    "The interval that the jackknife replaced: circular blocks of days drawn with replacement."
    length = round(len(values) ** (1 / 3))
    starts = np.random.default_rng(0).integers(0, len(values), (draws, round(len(values) / length), 1))
    drawn = values[(starts + np.arange(length)) % len(values)].reshape(draws, -1)
    ratios = drawn.mean(axis=1) / drawn.std(axis=1)
    return Interval(values.mean() / values.std(), *np.percentile(ratios, [2.5, 97.5]))


def reported(values: np.ndarray) -> Interval:
    "The interval of `sharpe_report`, of one day."
    record = sharpe_report(pd.Series(values), trials=1, periods_per_year=1.0)
    return Interval(record.sharpe, record.sharpe_low, record.sharpe_high)


@pytest.mark.parametrize("days", [60, 120, 250])
def test_the_sharpe_ratio_of_an_account_without_an_edge_is_covered(days):
    made = [daily_returns(seed, days) for seed in range(400)]
    covered, before = (share_covered([way(one) for one in made]) for way in (reported, drawn_ratio))
    print(f"{days} days: {covered:.3f}, percentile bootstrap {before:.3f}")
    assert 0.92 <= covered <= 0.98 and covered >= before


def test_the_sharpe_ratio_of_an_account_with_an_edge_is_covered_better_than_it_was():
    made = [daily_returns(seed, days, 0.1) for seed in range(200) for days in (60, 120, 250)]
    covered, before = (share_covered([way(one) for one in made], 0.1) for way in (reported, drawn_ratio))
    print(f"{covered:.3f}, percentile bootstrap {before:.3f}")
    assert 0.92 <= covered <= 0.98 and before < covered - 0.01


# The long proof: whole pipelines

KINDS, DAYS = ("simulated", "quiet", "shuffled", "mirrored"), (125, 200, 310, 460)
SEEDS = range(20)
TRUTHS = {"log_loss_gain": None, "auc": 0.5, "ic": 0.0, "accuracy": "guessed", "advantage": "guessed"}
TRUTHS |= {
    "balanced_accuracy": 0.5,
    "gross_r": None,
    "mean_r": None,
}  # None: that of other markets
QUIET = SimulationConfig(daily_volatility=0.012, clustering=0.2, surprise=0.1, trend=0.0, impulse_hours=2.0)


def null_market(kind: str, days: int, seed: int) -> Market:
    "A market without an edge; those in another order or mirrored are made of one with an edge."
    edge = 0.4 if kind in ("shuffled", "mirrored") else 0.0
    config = QUIET if kind == "quiet" else SimulationConfig(edge=edge, impulse_hours=2.0)
    number = 1000 * KINDS.index(kind) + seed
    end = pd.Timestamp("2024-01-01") + pd.Timedelta(days=days)
    made = simulate_market(
        ["ONE", "TWO"], "2024-01-01", str(end.date()), config.model_copy(update={"seed": number})
    )
    market = Market({symbol: one.candles for symbol, one in made.items()}, "5m")
    changed = {"shuffled": shuffled_market, "mirrored": mirrored_market}.get(kind)
    return changed(market, number) if changed else market


def judged(folder: Path, kind: str, days: int, seed: int) -> dict:
    "The headlines of the pipeline on a market; what was judged before by the same code is read."
    path = folder / f"{kind}_{days}_{seed}.json"
    if not path.exists():
        learnt = learn(null_market(kind, days, seed))
        run = judge_learnt(learnt)
        mixed = join_outcomes(run.predictions[run.predictions["model"] == "ensemble"], learnt.labels)
        shares = {"guessed": (mixed["probability"] > 0.5).mean(), "wins": mixed["won"].mean()}
        record = {**run.scores.iloc[0], **headlines(run), **shares}
        write_whole(path, json.dumps(plain(record)).encode())
    return json.loads(path.read_text())


def misses(table: pd.DataFrame, name: str, truth: float | str | None) -> pd.Series:
    """Whether each interval misses the truth.

    Of accuracies it is what guesses as frequent would reach if they had nothing to do with the outcome; where
    it is not known (None), it is the mean of the other markets of the kind and length, its own error added.
    """
    value, low, high = (table[name + end].astype(float) for end in ("", "_low", "_high"))
    if truth == "guessed":
        wins = table.groupby("kind")["wins"].transform("mean")
        right = table["guessed"] * wins + (1 - table["guessed"]) * (1 - wins)
        truth = right - np.maximum(wins, 1 - wins) if name == "advantage" else right
    if truth is not None:
        return ((low > truth) | (high < truth))[low.notna()]
    known = table[low.notna()].assign(value=value)
    cells = known.groupby(["kind", "span"])["value"]
    number, total = cells.transform("size"), cells.transform("sum")
    others = (total - known["value"]) / (number - 1)
    half = ((high - low) / 2)[low.notna()] * np.sqrt(1 + 1 / (number - 1))
    return (known["value"] - others).abs() > half


@pytest.mark.slow
def test_the_intervals_of_whole_pipelines_cover_what_they_claim(pytestconfig):
    code = sha256(
        json.dumps(code_hashes("smc_ml/stages/calls.py", ROOT), sort_keys=True).encode()
    ).hexdigest()
    folder = Path(pytestconfig.cache.mkdir(f"coverage_{code[:12]}"))
    places = list(product(KINDS, DAYS, SEEDS))
    table = pd.DataFrame(
        {**judged(folder, kind, days, seed), "kind": kind, "span": days} for kind, days, seed in places
    )
    missed = {name: misses(table, name, truth) for name, truth in TRUTHS.items()}
    covered = pd.DataFrame({name: 1 - found.groupby(table["span"]).mean() for name, found in missed.items()})
    evidence = [evidence_of(row) for row in table.to_dict("records")]
    informed, shown = ([test(one) for one in evidence] for test in (carries_information, edge_shown))
    print(
        covered.round(3), f"information {np.mean(informed):.3f}, edges shown {np.mean(shown):.3f}", sep="\n"
    )
    assert len(table) >= 200 and table["log_loss_gain_low"].notna().all()
    for name, found in missed.items():
        assert 0.92 <= 1 - found.mean() <= 0.98, (name, 1 - found.mean(), len(found))
    assert np.mean(informed) <= 0.04 and np.mean(shown) <= 0.01
