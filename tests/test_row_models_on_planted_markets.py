"""Every learner of rows finds an edge that was planted, and none where there is none."""

import pandas as pd
import pytest

from smc_ml.candles import Market
from smc_ml.evaluation.metrics import score
from smc_ml.labels.config import SplitsConfig
from smc_ml.patterns.config import PatternConfig
from smc_ml.simulation.config import SimulationConfig
from smc_ml.simulation.market import simulate_market
from smc_ml.stages.features import compute_features
from smc_ml.stages.labels import label_trades
from smc_ml.stages.patterns import find_patterns, in_timeframes
from smc_ml.stages.train import train_model

LEARNERS = ("logistic", "xgboost", "lightgbm", "random_forest", "mlp", "svm", "lorentzian")
BASELINES = ("base_rate", "persistence", "last_volatility")


def events(edge: float) -> tuple:
    "Features, their catalogue and trades of two simulated markets over eight months."
    simulated = simulate_market(["A", "B"], "2024-01-01", "2024-09-01", SimulationConfig(edge=edge, seed=11))
    market = Market({symbol: one.candles for symbol, one in simulated.items()}, "5m")
    patterns = find_patterns(in_timeframes(market, PatternConfig().timeframes)).tables
    computed = compute_features(market, patterns)
    return computed.tables, computed.catalogue, label_trades(market, patterns).outcomes


def gains(edge: float) -> pd.DataFrame:
    "Log-loss below that of the training base rate, with its interval, by model."
    learnt = events(edge)
    splits = SplitsConfig(n_folds=3)
    runs = [train_model(name, *learnt, splits=splits, progress=False).run for name in LEARNERS + BASELINES]
    scores = score(pd.concat([run.predictions for run in runs], ignore_index=True), learnt[2])
    return scores.set_index("model")[["log_loss_gain", "log_loss_gain_low", "log_loss_gain_high", "auc"]]


@pytest.mark.slow
def test_a_planted_edge_is_found_by_every_learner():
    found = gains(0.45)
    print(found.round(4).to_string())
    assert (found.loc[list(LEARNERS), "log_loss_gain_low"] > 0).all(), found
    assert (found.loc[list(BASELINES), "log_loss_gain_high"] < found.loc["logistic", "log_loss_gain"]).all()


@pytest.mark.slow
def test_no_learner_finds_an_edge_where_there_is_none():
    found = gains(0.0)
    print(found.round(4).to_string())
    assert (found["log_loss_gain_low"] <= 0).all(), found
