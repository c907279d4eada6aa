"""The whole pipeline, candles to account, where the base is a minute, a quarter of an hour or an hour."""

import numpy as np
import pytest
from test_labels_and_features_on_other_bases import BASES, based, short  # noqa: F401

from smc_ml.stages.calls import judge_events, market_events
from smc_ml.stages.config import PipelineSettings


def settings_of(base: str) -> PipelineSettings:
    "One fast model, small memories, zones of the base."
    timeframes, _, confluence, alignment = BASES[base]
    return PipelineSettings(
        patterns=short(base).model_dump(),
        labels={"timeframes": [timeframes[0]], "maximum_bars": 40, "maximum_wait": 60},
        features={
            "daily_bars": 2,
            "profile_bars": 60,
            "timeframes": list(timeframes[:2]),
            "confluence_pair": list(confluence),
            "alignment_pair": list(alignment),
        },
        splits={"n_folds": 2},
        train={"models": ["logistic"], "steps": 5},
        backtest={"minimum_expected_r": -1.0},
    )


@pytest.fixture(scope="module")
def run(based):  # noqa: F811
    settings = settings_of(based.timeframe)
    events = market_events(based, settings)
    return settings, events, judge_events(events, settings)


def test_every_stage_has_something_to_say(run):
    settings, events, judged = run
    assert len(events.labels) > 100 and set(events.features) == set(events.market)
    assert set(judged.predictions["model"]) == {"logistic", "ensemble"}
    assert len(judged.trades) > 20
    assert np.isfinite(judged.scores["auc"]).all()


def test_trades_are_entered_on_a_candle_of_the_base_after_what_they_rest_on(run):
    _, events, judged = run
    market, trades = events.market, judged.trades
    for symbol, each in trades.groupby("symbol", observed=True):
        opens = market[symbol].index
        assert each["entry_at"].isin(opens).all() and (each["entry_at"] >= each["time"]).all()
    assert (trades["exit_at"] > trades["entry_at"]).all()
    assert (trades["exit_at"] - trades["entry_at"]).mod(market.step).eq(market.step * 0).all()
