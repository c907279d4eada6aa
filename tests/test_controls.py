"""Chance is told from skill: the same code finds no edge where there is none, and the edge that was planted."""
import pandas as pd
import pytest
from conftest import by_timeframe
from smc_ml.backtest import BacktestConfig, backtest_metrics, random_selections, run_backtest, select_trades
from smc_ml.data.simulator import SimulationConfig, simulate_market
from smc_ml.ensemble import EnsembleConfig, combine
from smc_ml.evaluation.metrics import score, verdict
from smc_ml.features.smc import signed_features, smc_features
from smc_ml.labels.outcomes import Costs, label_symbols
from smc_ml.models.out_of_fold import TrainingConfig, out_of_fold
from smc_ml.models.windows import event_windows
from smc_ml.patterns.detection import detect_timeframes

def judged(edge: float, seed: int, models: tuple[str, ...], end: str = "2024-05-30", leak: bool = False) -> tuple[pd.Series, dict, str]:
    "The ensemble's scores, the account and the sentence of one simulated market."
    candles = {symbol: market.candles for symbol, market in simulate_market(["SIM-A", "SIM-B"], "2024-01-01", end, SimulationConfig(edge=edge, seed=seed, impulse_hours=2.0)).items()}
    patterns = {symbol: detect_timeframes(by_timeframe(series)) for symbol, series in candles.items()}
    outcomes = label_symbols(candles, patterns)
    features = {symbol: smc_features(candles[symbol], patterns[symbol]).shift(-12 if leak else 0) for symbol in candles}
    windows, kept = event_windows(features, outcomes, 60, signed_features())
    usable, settings = outcomes.iloc[kept].reset_index(drop=True), TrainingConfig(threads=1)
    single = pd.concat([out_of_fold(name, windows, usable, settings, progress=False).predictions for name in models], ignore_index=True)
    mixed, _ = combine(single, outcomes, EnsembleConfig())
    scores, config, costs = score(mixed, outcomes).iloc[0], BacktestConfig(), Costs()
    account = run_backtest(select_trades(mixed, outcomes, config), candles, mixed["time"].min(), outcomes["exit_at"].max(), config, costs)
    metrics = backtest_metrics(account, costs, config, random_selections(mixed, outcomes, config))
    return scores, metrics, verdict(scores["auc"], scores["auc_low"], scores["auc_high"], metrics["mean_r"] or 0.0, metrics["mean_r_low"], metrics["mean_r_high"], metrics["trades"])

def found(scores: pd.Series, metrics: dict) -> bool:
    "What the report would call an edge: the ranking beats chance and the trades earn more than their costs."
    return bool(scores["auc_low"] > 0.5 and metrics["mean_r_low"] > 0)

@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_market_without_an_edge_shows_none(seed):
    scores, metrics, sentence = judged(0.0, seed, ("logistic", "xgboost"))
    assert not found(scores, metrics)
    assert scores["advantage_low"] <= 0 and "An edge after costs" not in sentence

@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_planted_edge_is_found(seed):
    "Two years: with eight months the interval of the mean result still reaches down to zero about once in three times."
    scores, metrics, sentence = judged(0.45, seed, ("logistic", "xgboost"), end="2025-12-31")
    assert found(scores, metrics), (scores.to_dict(), metrics)
    assert sentence.startswith("An edge after costs") and metrics["random_as_good_share"] < 0.01

def test_a_leak_shows_as_an_edge_where_there_is_none():
    "Features of one hour later: what the null control is there to catch."
    scores, metrics, _ = judged(0.0, 1, ("logistic", "xgboost"), leak=True)
    assert found(scores, metrics)

@pytest.mark.slow
@pytest.mark.parametrize("edge", [0.0, 0.45])
def test_the_whole_ensemble_tells_them_apart_too(edge):
    scores, metrics, sentence = judged(edge, 4, ("logistic", "xgboost", "lstm"), end="2024-08-28")
    assert found(scores, metrics) == (edge > 0), (scores.to_dict(), metrics, sentence)
