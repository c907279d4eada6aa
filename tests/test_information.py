"""The information table: the trades and folds of the run, a leak seen, noise not, and what is said of it."""

import numpy as np
import pandas as pd
import pytest

from smc_ml.candles import Market
from smc_ml.evaluation.config import InformationConfig
from smc_ml.evaluation.information import (
    InformationError,
    information_sentence,
    information_table,
    weekly_mean,
)
from smc_ml.labels.config import SplitsConfig
from smc_ml.stages.information import (
    JudgedMarket,
    feature_sets,
    judge_information,
    learnt_trades,
    predictions_of_sets,
    shuffled_predictions,
)
from smc_ml.stages.learning import MarketEvents, events_of, predictions_of

SPLITS = SplitsConfig(n_folds=2, first_train_share=0.5)
SETS = {"smc": ["smc"], "event_facts": ["event_facts"], "alpha158": ["alpha158"]}
CONFIG = InformationConfig(sets=SETS, models=["logistic"], importance=["smc"])


@pytest.fixture(scope="module")
def events(bitcoin) -> MarketEvents:
    "Four months of real trades."
    return events_of(Market({"BTCUSDT": bitcoin[:35_000]}, "5m"))


@pytest.fixture(scope="module")
def judged(events) -> JudgedMarket:
    return JudgedMarket(events.market, events.features, events.catalogue, events.labels)


def test_the_set_of_the_run_is_judged_by_what_the_run_predicts(events, judged):
    "The same trades, folds, rows and model as those of the stage that trains."
    trades = learnt_trades(judged)
    sets = feature_sets(judged, trades, CONFIG, splits=SPLITS)
    told, _ = predictions_of_sets({"smc": sets["smc"]}, trades, ["logistic"], splits=SPLITS)
    usual = predictions_of("logistic", events, splits=SPLITS)
    pd.testing.assert_frame_equal(told.drop(columns="set"), usual)
    pd.testing.assert_frame_equal(
        shuffled_predictions(sets["smc"], trades, "logistic", splits=SPLITS)[0], usual
    )


@pytest.mark.parametrize("name", ["event_facts", "alpha158"])
def test_a_baseline_as_a_model_says_what_its_set_says(name, events, judged):
    "LightGBM on the columns of others: the stage that trains and this one make the same of them."
    trades = learnt_trades(judged)
    sets = feature_sets(judged, trades, CONFIG, splits=SPLITS)
    told, _ = predictions_of_sets({name: sets[name]}, trades, ["lightgbm"], splits=SPLITS)
    own = predictions_of(name, events, splits=SPLITS)
    assert set(own["model"]) == {name} and own["probability"].nunique() > 100
    pd.testing.assert_frame_equal(told.drop(columns=["set", "model"]), own.drop(columns="model"))


def test_the_rows_of_a_short_trade_are_turned(judged):
    trades = learnt_trades(judged)
    sets = feature_sets(judged, trades, CONFIG, splits=SPLITS)
    peer = InformationConfig(sets={"smc": ["alpha158"]}, importance=[])
    assert list(feature_sets(judged, trades, peer, splits=SPLITS)["smc"]) == list(sets["alpha158"])
    short = trades["direction"] == -1
    flipped = feature_sets(judged, trades.assign(direction=1), CONFIG, splits=SPLITS)
    pd.testing.assert_frame_equal(flipped["smc"][~short], sets["smc"][~short])
    signed = sorted(judged.catalogue.chosen(["smc"]).signed - set(judged.catalogue.partners))
    pd.testing.assert_frame_equal(flipped["smc"].loc[short, signed], -sets["smc"].loc[short, signed])
    rose, fell = (sets["alpha158"].loc[short, name] for name in ("CNTP20", "CNTN20"))
    pd.testing.assert_series_equal(rose, flipped["alpha158"].loc[short, "CNTN20"].rename("CNTP20"))
    pd.testing.assert_series_equal(fell, flipped["alpha158"].loc[short, "CNTP20"].rename("CNTN20"))


def test_a_leak_is_shown_and_no_real_set_of_four_months_is(judged):
    trades = learnt_trades(judged)
    leak = trades["won"] + np.random.default_rng(0).normal(0, 1, len(trades))
    sets = feature_sets(judged, trades, CONFIG, splits=SPLITS) | {"leak": pd.DataFrame({"leak": leak})}
    told, rises = predictions_of_sets(sets, trades, ["logistic"], ["leak"], splits=SPLITS)
    table = information_table(
        told, judged.outcomes, {name: rows.shape[1] for name, rows in sets.items()}, "smc"
    )
    by_set = table.set_index("set")
    assert by_set.loc["leak", "verdict"] == "shown" and by_set.loc["leak", "gain_over_reference_low"] > 0
    assert "leak with logistic gains" in information_sentence(table)
    assert "shown" not in by_set["verdict"].drop("leak").tolist()
    assert by_set["events"].nunique() == by_set["base_log_loss"].nunique() == 1
    moments = trades.set_index("event_id")["time"][rises["leak"].index]
    assert weekly_mean(rises["leak"]["leak"].to_numpy(), moments).interval.low > 0


def test_the_stage_says_which_sets_are_left_out_and_what_all_rows_allow(judged):
    config = InformationConfig(
        sets=SETS | {"rest": ["rest"]}, models=["logistic"], importance=["smc", "rest"]
    )
    found = judge_information(judged, config, splits=SPLITS)
    assert found.left_out == ("rest",) and found.sentence().endswith("no such features: rest.")
    assert set(found.importance["set"]) == {"smc"} and len(found.importance) == 16
    assert list(found.quarters) == ["feature", "2023Q1", "2023Q2", "set"]
    assert judge_information(
        judged, CONFIG.model_copy(update={"importance": ()}), splits=SPLITS
    ).importance.empty
    assert found.metrics()["sets"]["smc_logistic"]["columns"] == 16
    assert len(found.for_readers()) == 3


def test_sets_of_other_trades_are_not_compared(judged):
    trades = learnt_trades(judged)
    two = InformationConfig(sets={"smc": ["smc"], "event_facts": ["event_facts"]}, importance=[])
    told, _ = predictions_of_sets(
        feature_sets(judged, trades, two, splits=SPLITS), trades, ["logistic"], splits=SPLITS
    )
    fewer = told[(told["set"] == "smc") | (told["event_id"] % 2 == 0)]
    with pytest.raises(InformationError, match="event_facts with logistic predicts .* judge all sets on the"):
        information_table(fewer, judged.outcomes, {"smc": 16, "event_facts": 10})


def test_of_noise_one_interval_in_forty_lies_above_zero_and_hardly_any_once_all_are_counted():
    random = np.random.default_rng(0)
    times = pd.Series(pd.date_range("2024-01-01", periods=1500, freq="4h", tz="UTC"))
    drawn = (random.normal(size=36).repeat(42)[:1500] + random.normal(size=1500) for _ in range(600))
    found = [weekly_mean(values, times).p_value for values in drawn]
    shares = [np.mean([p_value < size for p_value in found]) for size in (0.025, 0.025 / 14)]
    assert 0.01 < shares[0] < 0.045 and shares[1] < 0.01
