"""The processor's own share of a close: eight decisions of eight symbols, without the models' time."""

import time

import numpy as np
import pandas as pd

from smc_ml.live.config import SignalConfig
from smc_ml.live.messages import ClosedCandles, Decision
from smc_ml.live.signals.processor import SignalProcessor
from smc_ml.live.signals.sources import RecordedSource, decided_events

SYMBOLS, CLOSES = [f"S{number}" for number in range(8)], 600
GROUP = "signals of a close, eight decisions"


class Timed(RecordedSource):
    "A source with windows to hash, and the time that it takes itself."

    seconds = 0.0
    window = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)

    def predict(self, events, context, keep):
        begun = time.thread_time_ns()
        found = super().predict(events, context, keep)
        self.seconds += (time.thread_time_ns() - begun) / 1e9
        return found

    def looked_at(self, symbol):
        return self.window

    def row(self, symbol):
        return {"regime_0": 0.9, "regime_1": 0.1}


def closes():
    "Decisions by close, and what is said of them."
    random = np.random.default_rng(1)
    times = pd.date_range("2024-01-01", periods=CLOSES, freq="5min", tz="UTC")
    what = "order_block", "15m", times[0], times[0], 101.0, 99.5, 99.0, 1.0
    found = [
        [Decision(symbol, at, 8 * place + number, 1, *what) for number, symbol in enumerate(SYMBOLS)]
        for place, at in enumerate(times)
    ]
    said = decided_events(one for decisions in found for one in decisions)
    numbers = random.uniform(size=(len(said), 5)) + 0.1
    names = ["probability", "low", "high", "expected_r", "disagreement"]
    return found, said.assign(**dict(zip(names, numbers.T, strict=True)))


def run(benchmark, name, config):
    found, said = closes()
    source = Timed(said, 0.0)
    processor, coming, took = SignalProcessor([source], config), iter(found), []

    def one_close():
        decisions = next(coming)
        prices = {symbol: {"close": 100.0 + len(took) % 7 + place} for place, symbol in enumerate(SYMBOLS)}
        before, begun = source.seconds, time.thread_time_ns()
        processor.observe(ClosedCandles(decisions[0].known_at, prices))
        processor.process(decisions)
        took.append((time.thread_time_ns() - begun) / 1e6 - 1e3 * (source.seconds - before))

    benchmark.group, benchmark.name = GROUP, name
    benchmark.pedantic(one_close, rounds=CLOSES if benchmark.enabled else 1)
    print(f"{name}: median {np.median(took):.3f} ms, 99th percentile {np.percentile(took, 99):.3f} ms")
    benchmark.extra_info["own milliseconds"] = float(np.median(took))


def test_by_the_rule_of_the_backtest(benchmark):
    run(benchmark, "no filters", SignalConfig())


def test_with_filters(benchmark):
    chosen = ("confidence", "score", "regime", "correlation", "rate")
    run(benchmark, "five filters", SignalConfig(filters=chosen, confidence=0.2, score=0.2, correlation=1.0))
