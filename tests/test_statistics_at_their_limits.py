"""Statistics where they turn: at the median, at zero, at one half, at the fewest that are allowed."""

import numpy as np
import pandas as pd
import pytest

from smc_ml.controls.nulls import null_edges, planted_results
from smc_ml.controls.placebo import placebo_sentence
from smc_ml.controls.planted import oracle_predictions
from smc_ml.evaluation.intervals import FEWEST_DAYS, mean_interval
from smc_ml.evaluation.metrics import base_rates, coverage_accuracy, score
from smc_ml.evaluation.overfitting import (
    FEWEST_PERIODS,
    OverfittingError,
    probability_of_backtest_overfitting,
    sharpe_report,
    superior_predictive_ability,
)
from smc_ml.evaluation.verdict import carries_information, decide, edge_shown, evidence_of
from smc_ml.figures.models import accuracy_plot
from smc_ml.labels.config import HorizonConfig
from smc_ml.labels.horizons import horizon_targets
from smc_ml.stages.calls import CHANCE, FEWEST_TRADES, PipelineRun, headlines
from smc_ml.trading.config import JudgementConfig
from smc_ml.trading.selection import CREDIBLE, judge, judgement_sentence
from smc_ml.trading.sentences import account_sentence

# The probability of backtest overfitting

WAVE = np.tile([1.0, -1.0], 10)  # twenty periods of half a sample, mean 0


def two_halves(*means: tuple[float, float]) -> np.ndarray:
    "Strategies with these means in the first and the second half, all with the same spread."
    return np.column_stack([np.concatenate([WAVE + first, WAVE + second]) for first, second in means])


def test_a_winner_at_the_very_median_is_overfitted():
    "The best of each half is the second of three in the other."
    found = probability_of_backtest_overfitting(two_halves((0.3, 0.2), (0.2, 0.3), (0.1, 0.1)), 2)
    assert found.logits.tolist() == [0.0, 0.0] and found.pbo == 1.0


def test_a_winner_just_above_the_median_is_not():
    found = probability_of_backtest_overfitting(two_halves((0.3, 0.2), (0.1, 0.1)), 2)
    assert (found.logits > 0).all() and found.pbo == 0.0


def test_a_winner_that_neither_gains_nor_loses_out_of_sample_has_not_lost():
    found = probability_of_backtest_overfitting(two_halves((0.3, 0.0), (0.0, 0.3)), 2)
    assert found.out_of_sample.tolist() == [0.0, 0.0] and found.loss_share == 0.0
    below = probability_of_backtest_overfitting(two_halves((0.3, -0.01), (-0.01, 0.3)), 2)
    assert below.loss_share == 1.0


def test_strategies_that_tie_share_the_middle_of_their_ranks():
    found = probability_of_backtest_overfitting(two_halves((0.3, 0.3), (0.3, 0.3)), 2)
    assert found.logits.tolist() == [0.0, 0.0] and found.pbo == 1.0


def test_two_strategies_are_enough_and_one_is_not():
    two = pd.DataFrame(two_halves((0.3, 0.2), (0.1, 0.1)), columns=["a", "b"])
    two.index = pd.date_range("2024-01-01", periods=len(two), freq="1D", tz="UTC")
    assert probability_of_backtest_overfitting(two, 2).strategies == 2
    with pytest.raises(OverfittingError, match="1 strategies, at least 2 are needed"):
        probability_of_backtest_overfitting(two[["a"]], 2)
    assert sharpe_report(two["a"], 2, two, blocks=2).pbo == 0.0
    assert sharpe_report(two["a"], 1, two[["a"]], blocks=2).pbo is None
    config = JudgementConfig(blocks=2, draws=100)
    assert judge(two, "a", 2, config).overfitting.strategies == 2
    assert isinstance(judge(two.assign(b=0.0), "a", 2, config).overfitting, str)


def test_two_periods_a_block_are_enough_and_fewer_are_not():
    values = np.random.default_rng(0).normal(size=(8, 3))
    assert probability_of_backtest_overfitting(values, 4).blocks == 4
    with pytest.raises(OverfittingError, match="7 periods for 4 blocks"):
        probability_of_backtest_overfitting(values[:7], 4)


def test_the_fewest_periods_are_enough_and_one_less_is_not():
    values = pd.DataFrame(np.random.default_rng(0).normal(size=(FEWEST_PERIODS, 2)))
    assert sharpe_report(values[0], 1).sharpe is not None
    assert sharpe_report(values[0][:-1], 1).sharpe is None
    assert superior_predictive_ability(values, draws=100).periods == FEWEST_PERIODS
    with pytest.raises(OverfittingError, match=f"at least {FEWEST_PERIODS} are needed"):
        superior_predictive_ability(values[:-1], draws=100)


def test_a_confidence_of_exactly_the_credible_one_is_credible():
    returns = pd.DataFrame(np.random.default_rng(0).normal(0.1, 1, (60, 2)), columns=["a", "b"])
    returns.index = pd.date_range("2024-01-01", periods=60, freq="1D", tz="UTC")
    judged = judge(returns, "a", 2, JudgementConfig(blocks=2, draws=100))
    for confidence, said in ((CREDIBLE, "is better than"), (CREDIBLE - 1e-9, "cannot be told from")):
        ratios = {name: confidence for name in judged.record._fields if name.endswith("dsr")}
        record = judged.record._replace(**ratios)
        assert f"{said} selection bias" in judgement_sentence(judged._replace(record=record))


# A model that says one half, or always the same


def events(number: int = 400, days: int = 40) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Events of which two in five are won, and a model's predictions of them."
    time = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(
        pd.Series(np.arange(number) * (days * 24 * 60 // number)), unit="min"
    )
    labels = pd.DataFrame({"symbol": "ONE", "time": time, "event_id": range(number)})
    won = pd.Series(np.arange(number) % 5 < 2)
    results = {"gross_r": np.where(won, 1.5, -1.0), "realised_r": np.where(won, 1.4, -1.1)}
    labels = labels.assign(exit_at=time + pd.Timedelta("1h"), won=won, **results)
    predictions = labels[["symbol", "time", "event_id"]].assign(
        model="constant", fold=np.arange(number) * 2 // number, probability=0.5, expected_r=0.1
    )
    return predictions, labels


def test_a_probability_of_one_half_is_no_guess_of_a_win():
    predictions, labels = events()
    row = score(predictions, labels).iloc[0]
    assert row["accuracy"] == 0.6 == row["majority_rate"]
    assert coverage_accuracy(predictions, labels, (1.0,))["accuracy"].tolist() == [0.6]
    first = labels["event_id"] < 200
    even = labels.assign(won=labels["won"].where(~first, labels["event_id"] % 2 == 0))
    even.loc[labels["event_id"] == 198, "exit_at"] += pd.Timedelta(
        "30D"
    )  # a win that is not over is not known
    even.loc[labels["event_id"] == 199, "exit_at"] += pd.Timedelta("30D")
    assert set(base_rates(predictions, even)) == {0.5}
    assert score(predictions, even).iloc[0]["majority_accuracy"] == (~even["won"]).mean()


def test_only_trades_that_are_over_when_a_fold_begins_are_in_its_base_rate():
    "Three trades of the first fold last into the second, one until its very first decision."
    predictions, labels = events()
    start = predictions.loc[predictions["fold"] == 1, "time"].min()
    lasting = labels["event_id"].isin([50, 100])  # both were won
    exits = (
        labels["exit_at"].where(~lasting, start + pd.Timedelta("3h")).where(labels["event_id"] != 150, start)
    )
    early = labels["exit_at"].lt(start) & ~lasting & labels["event_id"].ne(150)
    known = labels[early]
    assert len(known) < (labels["time"] < start).sum() - 2
    expected = (known["won"].sum() + 1) / (len(known) + 2)
    assert base_rates(predictions, labels.assign(exit_at=exits))[-1] == expected
    truths = {
        "ONE": pd.DataFrame({"retested_at": pd.to_datetime([], utc=True), "resolved_at": [], "direction": []})
    }
    told = labels.assign(exit_at=exits, direction=1)
    oracle = oracle_predictions(predictions, told, truths)
    wins = (known["won"].sum() + 10 * expected) / (len(known) + 10)
    assert oracle["probability"].iloc[-1] == pytest.approx(wins, abs=1e-12)


@pytest.mark.parametrize("probability", [0.5, 0.4, 0.9])
def test_a_constant_model_is_never_called_better_than_chance(probability):
    predictions, labels = events()
    labels["won"] = np.random.default_rng(0).random(len(labels)) < 0.4
    later = predictions[predictions["event_id"] >= 100]  # before them something is known
    row = score(later.assign(probability=probability), labels).iloc[0]
    assert (row["auc"], row["auc_low"], row["auc_high"]) == (0.5, 0.5, 0.5)
    assert np.isnan(row["ic"]) and row["advantage_low"] <= 0 and row["log_loss_gain_low"] <= 0
    profitable = {"trades": 400, "mean_r": 0.3, "mean_r_low": 0.2, "mean_r_high": 0.4}
    evidence = evidence_of({**row, **profitable})
    assert not carries_information(evidence) and not edge_shown(evidence) and decide(evidence) == "unknown"


def test_a_model_that_is_the_majority_does_not_beat_it_in_the_figure():
    predictions, labels = events()
    scores = score(predictions.assign(probability=0.4), labels)
    assert scores["advantage_low"].item() == 0.0
    assert "No model" in accuracy_plot(scores).get_suptitle()
    assert "No model" in accuracy_plot(scores.assign(advantage=1e-9, advantage_high=1e-9)).get_suptitle()


def at_chance(seed: int) -> dict[str, float]:
    return {f"{name}{end}": chance for name, chance in CHANCE.items() for end in ("", "_low", "_high")} | {
        "seed": seed
    }


def test_markets_at_chance_itself_lie_above_it_in_none_of_the_controls():
    table = pd.DataFrame([at_chance(seed) for seed in range(4)])
    assert null_edges(table)["above"].tolist() == [0] * len(CHANCE)
    judge_constant = lambda market, **where: {**at_chance(1), "trades": 50, "shares": []}  # noqa: E731
    run = lambda tasks, what: {name: judge_constant(None) for name in tasks}  # noqa: E731
    planted = planted_results({}, (0.2, 0.4), [1], table.assign(trades=50), judge_constant, run)
    assert not planted.runs["found"].any() and not planted.runs["profitable"].any()


def test_bounds_at_zero_do_not_lie_above_or_below_it():
    effect = {"kind": "order_block", "compared": 9, "move_effect": 0.0, "move_low": 0.0, "move_high": 0.0}
    effect |= {"hit_effect": 0.0, "hit_low": 0.0, "hit_high": 0.0}
    assert "cannot be told from that at" in placebo_sentence(effect)
    metrics = {"trades": 30, "mean_r": 0.1, "mean_r_low": 0.0, "mean_r_high": 0.2}
    metrics |= {"break_even_cost_basis_points": 6.0, "charged_cost_basis_points": 5.0}
    assert "not distinguishable from zero" in account_sentence(metrics)
    assert "not distinguishable from zero" in account_sentence(
        metrics | {"mean_r_low": -0.2, "mean_r_high": 0.0}
    )


# The fewest that are allowed


def test_the_fewest_days_are_enough_and_one_less_is_not():
    days = pd.Series(pd.date_range("2024-01-01", periods=FEWEST_DAYS, freq="1D", tz="UTC"))
    values = np.arange(float(FEWEST_DAYS))
    assert np.isfinite(mean_interval(values, days).low)
    assert np.isnan(mean_interval(values[1:], days[1:]).low)


def test_the_fewest_trades_are_enough_and_one_less_is_not():
    predictions, labels = events()
    scores = score(predictions.assign(model="ensemble"), labels)
    for number, known in ((FEWEST_TRADES, True), (FEWEST_TRADES - 1, False)):
        run = PipelineRun(predictions, scores, labels.iloc[:: 400 // number].head(number), {})
        record = headlines(run)
        assert record["trades"] == number
        assert {
            name: record[name] is not None for name in ("gross_r", "mean_r", "gross_t", "net_t")
        } == dict.fromkeys(("gross_r", "mean_r", "gross_t", "net_t"), known)


def test_a_horizon_without_a_missing_candle_is_known_where_none_may_be_missing():
    times = pd.date_range("2024-01-01", periods=400, freq="5min", tz="UTC")
    close = 100 + np.sin(np.arange(400.0))
    candles = pd.DataFrame(
        {"open": close, "high": close + 2, "low": close - 2, "close": close, "volume": 1.0}, times
    )
    config = HorizonConfig(horizons=("15m",), volatility_bars=20, maximum_missing=0.0)
    whole = horizon_targets(candles, config, "5m")
    assert whole.filter(like="return").notna().sum().tolist() == [397]
    holed = horizon_targets(candles.drop(times[200]), config, "5m").filter(like="return").iloc[:, 0]
    assert np.flatnonzero(holed.isna().to_numpy()).tolist() == [197, 198, 199, 396, 397, 398]
