"Inside a training span nothing is learnt, stopped or calibrated on what belongs to another part of it."

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from test_networks import samples, small, weights_of

from smc_ml.labels.config import SplitsConfig
from smc_ml.models.calibration import CalibratedModel
from smc_ml.models.config import TrainingConfig
from smc_ml.models.out_of_fold import inner_split, out_of_fold
from smc_ml.models.windows import WindowError, Windows

HYBRID = {"filters": 4, "hidden": 4, "epochs": 2, "batch_size": 16, "trees": 3, "gap": 0, "leaf_weight": 0.0}
FOLDS = SplitsConfig(n_folds=2, first_train_share=0.5)


def events(number: int = 240) -> tuple[Windows, pd.DataFrame]:
    "An event an hour; every second trade lasts thirty hours, the others five."
    X, won = samples(number)
    times = pd.date_range("2024-01-01", periods=number, freq="1h", tz="UTC", unit="ns")
    lasts = pd.to_timedelta(np.where(np.arange(number) % 2, 5, 30), unit="h")
    table = {
        "symbol": "A",
        "time": times,
        "exit_at": times + lasts,
        "event_id": np.arange(number),
        "won": won,
    }
    windows = Windows(X.values, X.positions, X.feature_names, X.length, X.orientation, times=times)
    return windows, pd.DataFrame(table)


def network_of(labels: pd.DataFrame, X: Windows) -> dict[str, bytes]:
    "The weights of the last fold's hybrid network."
    run = out_of_fold("hybrid", X, labels, TrainingConfig(hybrid=HYBRID), FOLDS, progress=False)
    return weights_of(run.model.network_)


def test_the_network_of_the_hybrid_learns_from_no_trade_that_was_open_when_its_trees_begin():
    X, labels = events()
    edge = out_of_fold("logistic", X, labels, splits=FOLDS, progress=False).folds["test_start"].iloc[-1]
    known = labels[labels["exit_at"] + FOLDS.embargo < edge]
    learnt, _ = inner_split(known, TrainingConfig().validation_share, FOLDS.embargo)
    learnt = known.iloc[learnt]
    begins = learnt["time"].iloc[round(len(learnt) / 2)]
    still_open = (labels["time"] < begins) & (labels["exit_at"] >= begins)
    assert still_open.sum() > 10
    before = network_of(labels, X)
    assert network_of(labels.assign(won=labels["won"] ^ still_open), X) == before
    ended = (labels["time"] < begins) & ~still_open
    assert network_of(labels.assign(won=labels["won"] ^ ended), X) != before


@pytest.mark.parametrize("given", [True, False], ids=["a tail", "its own tail"])
def test_a_network_is_not_stopped_on_the_tail_that_calibrates_it(given):
    "What happened there may be anything: the network stays, and the calibration does not."
    X, labels = events()
    won, tail = labels["won"].to_numpy(), np.arange(240) >= 192
    answers = []
    for happened in (won, won ^ tail):
        model = CalibratedModel(small("lstm", epochs=8))
        if given:
            model.fit(X[~tail], happened[~tail], validation=(X[tail], happened[tail]))
        else:
            model.fit(X, happened)
        answers.append((weights_of(model.model_), model.predict_proba(X[:5]).tolist()))
    (weights, said), (same_weights, said_otherwise) = answers
    assert weights == same_weights and said != said_otherwise


@pytest.mark.parametrize("model", [CalibratedModel(small("lstm", epochs=1)), small("hybrid", epochs=1)])
def test_when_trades_ended_is_not_left_unheard_where_the_windows_have_no_times(model):
    X, labels = events()
    blind = Windows(X.values, X.positions, X.feature_names, X.length, X.orientation)
    with pytest.raises(WindowError, match="do not say when they are decided, so that exit_at separates"):
        clone(model).fit(blind, labels["won"].to_numpy(), exit_at=labels["exit_at"])
