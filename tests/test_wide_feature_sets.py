"""A wide set may not cost: noise columns beside the sixteen features, on real trades."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from smc_ml.candles import Market
from smc_ml.datasets.engineer import SMCFeatureEngineer
from smc_ml.datasets.samples import SMCDataset
from smc_ml.models.out_of_fold import out_of_fold
from smc_ml.models.saving import load_model, save_model

SMALL = 5e-4  # log-loss that a wide set may cost


@pytest.fixture(scope="module")
def trades(bitcoin) -> SMCDataset:
    "Four months of real trades."
    market = Market({"BTCUSDT": bitcoin[:35_000]}, "5m")
    return SMCFeatureEngineer().engineer_features(market, wanted=["smc"])


def widened(trades: SMCDataset, columns: int, seed: int = 0) -> SMCDataset:
    "The same trades with columns of noise."
    noise = np.random.default_rng(seed).normal(size=(len(trades), columns)).astype(np.float32)
    windows = replace(
        trades.windows,
        values=np.column_stack([trades.windows.last(), noise]),
        positions=np.arange(len(trades)),
        feature_names=(*trades.names, *(f"noise_{place}" for place in range(columns))),
        orientation=None,
    )
    return replace(trades, windows=windows)


def gain(model: str, trades: SMCDataset) -> float:
    "Log-loss of each fold's training base rate minus that of the model, out of fold."
    run = out_of_fold(model, trades.windows, trades.labels, progress=False)
    told = run.predictions.merge(trades.labels[["event_id", "won"]], on="event_id")
    base = told["fold"].map(run.folds.set_index("fold")["train_won_share"])
    return float((_nats(base, told["won"]) - _nats(told["probability"], told["won"])).mean())


def _nats(probability: pd.Series, won: pd.Series) -> pd.Series:
    return -np.log(probability.where(won, 1 - probability))


@pytest.mark.parametrize("model", ["logistic", "xgboost"])
def test_noise_columns_cost_next_to_nothing(model, trades):
    narrow, wide = gain(model, trades), gain(model, widened(trades, 240))
    assert wide > narrow - SMALL, (narrow, wide)


@pytest.mark.parametrize("model", ["logistic", "xgboost"])
def test_what_a_column_says_is_heard_among_noise(model, trades):
    rank = trades.features.iloc[:, 0].rank(pct=True).to_numpy() - 0.5
    said = np.random.default_rng(1).random(len(trades)) < 1 / (1 + np.exp(-3 * rank))
    planted = replace(trades, labels=trades.labels.assign(won=said))
    narrow, wide = gain(model, planted), gain(model, widened(planted, 240))
    assert narrow > 0.03 and wide > 0.4 * narrow, (narrow, wide)


@pytest.mark.parametrize("model", ["logistic", "xgboost"])
def test_a_model_of_a_wide_set_comes_back_as_it_was(model, trades, tmp_path):
    wide = widened(trades, 60)
    run = out_of_fold(model, wide.windows, wide.labels, progress=False)
    save_model(run.model, tmp_path / model, run.description)
    again = load_model(tmp_path / model)
    assert np.array_equal(again.predict_proba(wide.windows), run.model.predict_proba(wide.windows))
    assert repr(again.get_params()) == repr(run.model.get_params())
