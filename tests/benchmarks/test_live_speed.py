"""A close, from its candles to the stored signal, with all default models: its parts, and a hundred symbols.

The candles are simulated; the networks have their default sizes and one epoch of training.
"""

import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from smc_ml.candles import Market
from smc_ml.features.table import feature_tables
from smc_ml.labels.config import SplitsConfig
from smc_ml.live.feeds.replay import closes
from smc_ml.live.messages import ClosedCandles
from smc_ml.live.path import LivePath
from smc_ml.live.running import LiveRun
from smc_ml.live.signals.sources import asked_of, decided_events
from smc_ml.live.store.live_store import LiveStore
from smc_ml.models.config import TrainingConfig
from smc_ml.models.saving import save_model
from smc_ml.patterns.detection import detect_market
from smc_ml.serving.answering import history_needed
from smc_ml.serving.bundle import Bundle
from smc_ml.serving.finished import SERVED_SECTIONS, FinishedRun, ServedMarket
from smc_ml.serving.making import make_bundle
from smc_ml.simulation.config import SimulationConfig
from smc_ml.simulation.market import simulate_market
from smc_ml.stages.bars import train_bars
from smc_ml.stages.horizons import bar_targets
from smc_ml.stages.learning import events_of
from smc_ml.stages.train import train_model

TWO, HUNDRED = ["S000", "S001"], [f"S{number:03d}" for number in range(100)]
LEARNT, LAST = "2024-02-10", "2024-02-17"  # simulated candles until then; live ones until then
ONE_EPOCH = {"lstm": {"epochs": 1}, "patchtst": {"epochs": 1}}
PARTS = ("features", "broker", "decisions", "models", "orders", "store")


def candles_of(names):
    config = SimulationConfig(edge=0.4)
    found = simulate_market(names, "2024-01-01", LAST, config)
    return Market({name: one.candles for name, one in found.items()}, "5m")


@pytest.fixture(scope="module")
def market():
    return candles_of(TWO)


@pytest.fixture(scope="module")
def bundled(market, tmp_path_factory):
    "A bundle of all default models, of two symbols and two folds, that a hundred symbols may ask."
    root, train, folds = (
        tmp_path_factory.mktemp("bundle"),
        TrainingConfig(**ONE_EPOCH),
        SplitsConfig(n_folds=2),
    )
    known = market.map(lambda candles: candles[:LEARNT])
    events, ahead, runs = events_of(known), bar_targets(known).tables, {}
    learnt = events.features, events.catalogue
    for name in train.models:
        if train.samples_of(name).of == "bars":
            runs[name] = train_bars(name, *learnt, ahead, train, folds, progress=False).run
        else:
            runs[name] = train_model(name, *learnt, events.labels, train, folds, progress=False).run
        save_model(runs[name].model, root / name, runs[name].description)
    told = {"first": "2024-01-01", "last": LEARNT, "rows": 1, "source": "simulated", "content": ""}
    served = ServedMarket("5m", tuple(known[TWO[0]]), dict.fromkeys(HUNDRED, told))
    settings = {name: kind() for name, kind in SERVED_SECTIONS.items()} | {"train": train}
    said = {name: run.predictions for name, run in runs.items()}
    spans = {name: run.folds for name, run in runs.items()}
    places = {name: root / name for name in runs}
    run = FinishedRun(settings, served, events.catalogue, events.labels, said, spans, places, {}, {})
    make_bundle(run, root / "5m")
    return root / "5m"


def begun(bundled, market, place):
    "A run whose history ends where the models stopped to learn, and the closes that follow."
    bundle, start = Bundle.load(bundled), pd.Timestamp(LEARNT, tz="UTC")
    room = history_needed(bundle)
    history = market.map(lambda candles: candles[candles.index < start].iloc[-room:])
    seconds = time.process_time()
    run = LiveRun(LivePath(bundle, history), LiveStore(place))
    run._write_history(history)
    print(f"{len(market)} symbols: {time.process_time() - seconds:.1f} s of the processor to begin")
    return run, iter(closes(market, start))


def told(benchmark, table, decided):
    "Median and 99th percentile of the parts, milliseconds."
    table = table.assign(close=table[list(PARTS)].sum(axis=1))
    for name in (*PARTS, "close", "processor"):
        middle, high = np.quantile(table[name], [0.5, 0.99])
        benchmark.extra_info[name] = {"median_ms": round(middle, 2), "p99_ms": round(high, 2)}
        print(f"{name}: median {middle:.2f}, p99 {high:.2f} ms")
    those = table["close"][decided]
    print(f"{len(table)} closes, {decided.sum()} that decide: median {those.median():.2f} ms")


def measured(benchmark, run, coming, rounds):
    "Take closes; the parts of each by the clock, and the whole by the processor."
    rows, decided = [], []

    def one_close():
        known_at, candles = next(coming)
        begun = time.process_time_ns()
        result = run.take(ClosedCandles(known_at, candles))
        used = (time.process_time_ns() - begun) / 1e6
        kept = 1e3 * run.keeping[-1] if run.count % run.kept_every == 0 else 0.0
        rows.append({name: 1e3 * part for name, part in run.seconds[-1].items()} | {"processor": used})
        rows[-1]["keeping"] = kept
        decided.append(bool(result.decisions))

    benchmark.pedantic(one_close, warmup_rounds=1, rounds=rounds if benchmark.enabled else 1)
    first = int(len(rows) > 1)  # one that only warms up, where it is measured at all
    table = pd.DataFrame(rows[first:])
    plain = table["keeping"] == 0
    told(benchmark, table[plain], np.array(decided[first:])[plain.to_numpy()])
    if not plain.all():
        kept = table["keeping"][~plain].median()
        print(f"keeping the path, each {run.kept_every} closes, after the signals are stored: {kept:.0f} ms")
        benchmark.extra_info["keeping_ms"] = round(kept, 1)
    return table[plain]


GROUP = "a close of two symbols"


def test_a_close(benchmark, bundled, market, tmp_path):
    run, coming = begun(bundled, market, tmp_path / "live.sqlite")
    benchmark.group, benchmark.name = GROUP, "LiveRun.take, to the stored signal"
    measured(benchmark, run, coming, 1900)


def test_by_the_batch(benchmark, bundled, market):
    "The peer: patterns and features of the history that is needed, once more, and the models by tables."
    bundle, start = Bundle.load(bundled), pd.Timestamp(LEARNT, tz="UTC")
    room, names = history_needed(bundle), bundle.features_of("bars")
    history = market.map(lambda candles: candles[candles.index < start].iloc[-room:])

    def newest():
        tables = feature_tables(history, detect_market(history), wanted=names)
        events = pd.DataFrame({"symbol": TWO, "time": start, "event_id": [1, 2], "direction": [1, -1]})
        return bundle.predict(tables, events), bundle.forecast(tables)

    benchmark.group, benchmark.name = GROUP, f"the batch over {room} rows"
    benchmark.pedantic(newest, warmup_rounds=1, rounds=3)


ASKED = "a decision and a bar are asked"


@pytest.fixture(scope="module")
def asked(bundled, market, tmp_path_factory):
    "A predictor at a close that decides, and its decisions."
    run, coming = begun(bundled, market, Path(tmp_path_factory.mktemp("asked")) / "live.sqlite")
    for known_at, candles in coming:
        result = run.take(ClosedCandles(known_at, candles))
        if result.decisions and known_at.minute % 15 == 0:
            later = [one._replace(event_id=one.event_id + 500) for one in result.decisions[:1]]
            return run.path.predictor, later
    raise AssertionError("nothing was decided")


def test_without_tables(benchmark, asked):
    predictor, decisions = asked
    benchmark.group, benchmark.name = ASKED, "LivePredictor.answered, forecasts"
    events = asked_of(decisions)
    benchmark.pedantic(
        lambda: (predictor.answered(events), predictor.forecasts()), warmup_rounds=5, rounds=200
    )


def test_by_tables(benchmark, asked):
    predictor, decisions = asked
    benchmark.group, benchmark.name = ASKED, "predict, forecast"
    events = decided_events(decisions)
    benchmark.pedantic(lambda: (predictor.predict(events), predictor.forecast()), warmup_rounds=5, rounds=200)


def test_a_hundred_symbols(benchmark, bundled, tmp_path):
    "Symbols a second that one process reaches: closes of a hundred, each with all that follows from it."
    run, coming = begun(bundled, candles_of(HUNDRED), tmp_path / "live.sqlite")
    benchmark.group, benchmark.name = "a close of a hundred symbols", "LiveRun.take, to the stored signals"
    table = measured(benchmark, run, coming, 96)
    rate = 100 * 1e3 / table["processor"].mean()
    benchmark.extra_info["symbols a second of the processor"] = round(rate)
    print(f"{rate:.0f} symbols a second of the processor")
    if benchmark.enabled:
        assert rate > 100
