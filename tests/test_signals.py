"""Signals of a real bundle: what is traded is what the backtest trades, live, after restarts and failures."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from smc_ml.candles import Market
from smc_ml.ensemble.estimator import load_ensemble
from smc_ml.labels.config import HorizonConfig, SplitsConfig
from smc_ml.live.config import SignalConfig
from smc_ml.live.messages import ClosedCandles, Decision
from smc_ml.live.outcomes import DecisionOutcome
from smc_ml.live.signals.processor import SignalProcessor
from smc_ml.live.signals.records import signal_record
from smc_ml.live.signals.sources import PredictorSource, RecordedSource, decided_events, resolved_events
from smc_ml.models.config import TrainingConfig
from smc_ml.models.saving import save_model
from smc_ml.serving.answering import LivePredictor
from smc_ml.serving.asked import LiveEvent, feature_rows
from smc_ml.serving.bundle import Bundle
from smc_ml.serving.calculator import restore_calculator, save_calculator
from smc_ml.serving.finished import SERVED_SECTIONS, FinishedRun, ServedMarket
from smc_ml.serving.making import make_bundle
from smc_ml.simulation.config import SimulationConfig
from smc_ml.simulation.market import simulate_market
from smc_ml.stages.bars import train_bars
from smc_ml.stages.horizons import bar_targets
from smc_ml.stages.learning import events_of
from smc_ml.stages.train import train_model
from smc_ml.trading.account import select_trades
from smc_ml.trading.config import BacktestConfig

STEP, LIVE = pd.Timedelta("5min"), 400  # candles that come in live
NEEDED = 7500  # candles after which a calculator's rows are whole


def decision_of(row) -> Decision:
    what = row.direction, row.kind, row.timeframe, row.formed_at, row.known_at, row.top, row.bottom
    return Decision(row.symbol, row.time, row.event_id, *what, row.stop, row.strength)


def outcome_of(row) -> DecisionOutcome:
    ended = row.exit_at, row.exit_price, row.exit_reason, row.gross_r, row.cost_r, row.realised_r
    entered = row.exit_at, row.entry_at, row.entry, row.stop, row.target
    rest = row.mfe_r, row.mae_r, row.won, row.ambiguous, row.holding_bars
    return DecisionOutcome(decision_of(row), *entered, *ended, *rest)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "A simulated market, its events, the out-of-fold predictions of a model, and a bundle of it."
    root = tmp_path_factory.mktemp("signals")
    config = SimulationConfig(edge=0.4)
    whole = simulate_market(["SIM"], "2024-01-01", "2024-02-10", config)["SIM"].candles
    candles = whole[:-LIVE]  # that the run knew
    bars = {"of": "bars", "timeframe": "1h", "steps": 24}
    few = {"lightgbm": {"trees": 3, "samples": bars}, "xgboost": {"trees": 20}}
    train = TrainingConfig(models=["logistic", "xgboost", "lightgbm"], **few)
    market, folds = Market({"SIM": candles}, "5m"), SplitsConfig(n_folds=2)
    settings = {name: kind() for name, kind in SERVED_SECTIONS.items()} | {"train": train}
    events = events_of(market)
    learnt = events.features, events.catalogue
    runs = {
        name: train_model(name, *learnt, events.labels, train, folds, progress=False).run
        for name in ("logistic", "xgboost")
    }
    ahead = bar_targets(market, HorizonConfig(horizons=["1h", "4h"])).tables
    runs["lightgbm"] = train_bars("lightgbm", *learnt, ahead, train, folds, progress=False).run
    for name, run in runs.items():
        save_model(run.model, f"{root}/{name}", run.description)
    told = {"first": "2024-01-01", "last": "2024-02-09", "rows": len(candles), "source": "simulated"}
    place = ServedMarket("5m", tuple(candles), {"SIM": told | {"content": ""}})
    said = {name: run.predictions for name, run in runs.items()}
    spans = {name: run.folds for name, run in runs.items()}
    places = {name: Path(root) / name for name in runs}
    run = FinishedRun(settings, place, events.catalogue, events.labels, said, spans, places, {}, {})
    make_bundle(run, f"{root}/5m")
    later = events_of(Market({"SIM": whole}, "5m"))
    facts = {"market": market, "candles": whole, "events": events, "later": later}
    return SimpleNamespace(folder=f"{root}/5m", said=said["logistic"], **facts)


@pytest.fixture(scope="module")
def coming(served):
    "The live part: the closes in order, and by close its candle, its decisions, and outcomes known then."
    opens = served.candles.index[-LIVE:]
    labels = served.later.labels[served.later.labels["time"] > opens[0]]
    closes = []
    for opened in opens:
        here, over = labels[labels["time"] == opened + STEP], labels[labels["exit_at"] == opened + STEP]
        candle = {"SIM": {"open_time": opened} | served.candles.loc[opened].to_dict()}
        told = [decision_of(row) for row in here.itertuples()], [outcome_of(row) for row in over.itertuples()]
        closes.append((ClosedCandles(opened + STEP, candle), *told))
    assert sum(len(decisions) for _, decisions, _ in closes) > 20
    return closes


def predictor_of(served) -> LivePredictor:
    return LivePredictor(Bundle.load(served.folder), served.market.map(lambda candles: candles[-NEEDED:]))


def lived(served, coming, restarts=(), folder=None, config=SignalConfig()):
    "The signals of the live part, with restarts in between."
    predictor, found = predictor_of(served), []
    processor = SignalProcessor.following(predictor, config)
    for number, (closed, decisions, outcomes) in enumerate(coming):
        if number in restarts:
            state = json.dumps(processor.state(), allow_nan=False)
            save_calculator(predictor.calculator, f"{folder}/calculator")
            predictor.bundle.ensemble.save(f"{folder}/ensemble")
            predictor = predictor_of(served)
            predictor.calculator = restore_calculator(f"{folder}/calculator")
            predictor.bundle.ensemble = load_ensemble(f"{folder}/ensemble")
            processor = SignalProcessor.following(predictor, config)
            processor.restore(json.loads(state))
        predictor.update(closed.candles)
        processor.observe(closed)
        processor.resolve(outcomes)
        found += processor.process(decisions, closed.known_at)
    return found


@pytest.fixture(scope="module")
def signals(served, coming):
    return lived(served, coming)


def test_what_is_acted_on_is_what_the_backtest_selects_from(served):
    labels = served.events.labels
    known = labels[labels["event_id"].isin(served.said["event_id"])]
    for least in (0.0, -0.2):
        config = BacktestConfig(minimum_expected_r=least)
        processor = SignalProcessor([RecordedSource(served.said, least)])
        acted = [
            signal.decision.event_id
            for _, rows in known.groupby("time")
            for signal in processor.process([decision_of(row) for row in rows.itertuples()])
            if signal.acted_on
        ]
        wanted = served.said[served.said["expected_r"] > least]
        assert acted == wanted["event_id"].tolist() and 0 < len(acted) < len(served.said)
        chosen = select_trades(served.said, known, config, market=served.market)
        of_signals = served.said[served.said["event_id"].isin(acted)]
        pd.testing.assert_frame_equal(select_trades(of_signals, known, config, market=served.market), chosen)
        assert 0 < len(chosen) < len(acted)  # one position a symbol


def test_live_signals_are_what_the_bundle_says_of_the_whole_table(served, coming, signals):
    bundle, expected = Bundle.load(served.folder), []
    for closed, decisions, outcomes in coming:
        if outcomes:
            bundle.update(resolved_events(outcomes))
        if decisions:
            events = decided_events(decisions)
            told = bundle.predict(served.later.features, events, now=closed.known_at, keep=True)
            expected += told.to_dict("records")
    assert len(signals) == len(expected)
    for ours, theirs in zip(signals, expected, strict=True):
        assert (ours.side, ours.reason) == (theirs["signal"], theirs["reason"])
        numbers = ours.confidence, ours.expected_r, ours.low, ours.high, ours.disagreement
        names = ("probability", "expected_r", "low", "high", "disagreement")
        np.testing.assert_allclose(numbers, [theirs[name] for name in names], rtol=0, atol=1e-6)
        assert ours.acted_on == (theirs["expected_r"] > bundle.settings["backtest"].minimum_expected_r)
    assert {ours.acted_on for ours in signals} == {True, False}
    assert any(list(ours.returns) == ["1h", "4h"] for ours in signals)


def test_risk_and_hash_stand_beside_the_answer(served, signals):
    labels = served.later.labels.set_index("event_id")
    for ours in signals:
        close = served.candles["close"].loc[ours.known_at - STEP]
        stop = labels.loc[ours.decision.event_id, "stop"]
        assert ours.risk == pytest.approx(max(abs(close - stop) / close, 0.0), rel=0.2)
        assert len(ours.feature_hash) == 32
    hashes = pd.Series([ours.feature_hash for ours in signals])
    assert hashes.nunique() == len({ours.known_at for ours in signals})


def test_restarts_in_the_middle_give_the_same_signals(served, coming, signals, tmp_path):
    again = lived(served, coming[:300], (100, 101), tmp_path)
    assert len(again) > 15
    assert [signal_record(one) for one in again] == [signal_record(one) for one in signals[: len(again)]]


def test_a_model_that_fails_trades_nothing_and_is_left_alone(served, coming, monkeypatch):
    predictor = predictor_of(served)
    processor = SignalProcessor.following(predictor, SignalConfig(breaker_failures=2, breaker_seconds=3600))
    asked = []

    def fails(*_):
        asked.append(1)
        raise MemoryError("no memory")

    monkeypatch.setattr(predictor.bundle.models["logistic"], "predict_proba", fails)
    found, until = [], None
    for closed, decisions, outcomes in coming:
        predictor.update(closed.candles)
        processor.resolve(outcomes)  # of events that no model was asked for: nobody learns from them
        if decisions and until is None:
            found += processor.process(decisions)
            if len(asked) == 2:
                until = closed.known_at + pd.Timedelta("1h")
        elif decisions and closed.known_at < until:
            found += processor.process(decisions)
    assert {one.side for one in found} == {"NEUTRAL"} and len(asked) == 2
    assert found[0].reason == "models did not answer: logistic failed: no memory"
    assert [notice.level for notice in processor.take_notices()] == ["degraded"]
    monkeypatch.undo()
    rest = [one for one in coming if one[1] and one[0].known_at >= until]
    well = [signal for _, decisions, _ in rest for signal in processor.process(decisions)]
    assert not any("failed" in signal.reason for signal in well)
    assert [notice.what for notice in processor.take_notices()] == ["models answers again"]


def test_an_answer_is_kept_by_its_rows_until_an_outcome_comes(served, coming):
    predictor = predictor_of(served)
    processor = SignalProcessor([PredictorSource(predictor)], keep=False)
    closed, decisions, _ = next(one for one in coming if one[1])
    for other, _, _ in coming:
        predictor.update(other.candles)
        if other.known_at == closed.known_at:
            break
    first, twin = decisions[0], decisions[0]._replace(top=decisions[0].top + 1, event_id=10**6)
    one, two = processor.process([first])[0], processor.process([twin])[0]
    assert one.expected_r == two.expected_r and one.key != two.key
    assert (processor.counts["answered"], processor.counts["cached"]) == (1, 1)
    turned = processor.process([first._replace(direction=-first.direction)])[0]
    assert turned.expected_r != one.expected_r and processor.counts["answered"] == 2
    row = served.events.labels.iloc[0]
    processor.resolve([outcome_of(row)])
    processor.process([twin._replace(top=twin.top + 1)])
    assert processor.counts["answered"] == 3


def test_a_row_is_seen_as_the_models_see_it(served):
    source = PredictorSource(predictor_of(served))
    features = source.predictor.calculator.get_features_for_ml("SIM", None)
    at = features.index[-1] + STEP
    events = pd.DataFrame({"symbol": "SIM", "time": at, "event_id": [1, 2], "direction": [1, -1]})
    inputs = source.predictor.bundle.inputs
    asked = [LiveEvent(*one) for one in events[list(LiveEvent._fields)].itertuples(index=False)]
    windows, _ = inputs.windows({"SIM": feature_rows(features, inputs.names)}, asked)
    for place, direction in enumerate((1, -1)):
        np.testing.assert_allclose(source.oriented("SIM", direction), windows.last()[place], rtol=1e-6)
    window = features[list(source.features)].tail(60).astype(np.float32)
    np.testing.assert_array_equal(source.looked_at("SIM"), window)
    assert source.oriented("OTHER", 1) is None and source.row("OTHER") == {}
