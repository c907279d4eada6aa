"""The paper account, close by close, beside the backtest of its trades; and a hundred symbols at a close."""

import time

import numpy as np
import pytest

from smc_ml.candles import Market
from smc_ml.labels.config import LabelingConfig
from smc_ml.labels.outcomes import label_symbols
from smc_ml.live.broker.contract import BrokerRules
from smc_ml.live.broker.paper import PaperBroker
from smc_ml.live.broker.walking import market_closes, orders_of_predictions, walk_account
from smc_ml.live.messages import Order
from smc_ml.patterns.config import PatternConfig
from smc_ml.patterns.detection import detect_patterns
from smc_ml.simulation.market import random_walk
from smc_ml.stages.backtest import follow_predictions
from smc_ml.trading.config import BacktestConfig

LABELS, PATTERNS = LabelingConfig(timeframes=("5m",)), PatternConfig(timeframes=("5m",))
GROUP = "twenty days of two symbols"


@pytest.fixture(scope="module")
def followed(bitcoin, ether):
    "Candles, labels, predictions that know nothing, and the orders that they are."
    days = slice("2023-03-01", "2023-03-20")
    market = Market({"BTCUSDT": bitcoin[days], "ETHUSDT": ether[days]}, "5m")
    patterns = {symbol: detect_patterns(candles, PATTERNS, "5m") for symbol, candles in market.items()}
    labels = label_symbols(market, patterns, LABELS, pattern_config=PATTERNS)
    said = labels[["symbol", "time", "event_id"]].assign(
        model="random",
        fold=0,
        target="won",
        probability=0.5,
        expected_r=np.random.default_rng(1).normal(0, 0.2, len(labels)),
    )
    return market, labels, said, orders_of_predictions(said, labels, market, labeling=LABELS)


def test_by_the_backtest(benchmark, followed):
    market, labels, said, _ = followed
    benchmark.group, benchmark.name = GROUP, "follow_predictions"
    benchmark.pedantic(
        lambda: follow_predictions(said, labels, market, scenarios=["expected"]), warmup_rounds=1, rounds=3
    )


def test_close_by_close(benchmark, followed):
    market, _, _, orders = followed
    closes = list(market_closes(market))
    rules = BrokerRules(tuple(market), "5m", labels=LABELS, patterns=PATTERNS)
    benchmark.group, benchmark.name = GROUP, "PaperBroker"
    walked = benchmark.pedantic(
        lambda: walk_account(PaperBroker(rules), closes, orders), warmup_rounds=1, rounds=3
    )
    trades = sum(fill.what == "entry" for fill in walked.fills)
    benchmark.extra_info["closes, trades"] = [len(closes), trades]
    print(f"{len(closes):,} closes, {trades} trades")


def test_a_hundred_symbols_at_a_close(benchmark):
    "Median and 99th percentile of a close, in time of the processor: each tenth enters eight orders."
    symbols = [f"S{number:03d}" for number in range(100)]
    closes = list(market_closes(Market({name: random_walk(600, n) for n, name in enumerate(symbols)}, "5m")))
    broker = PaperBroker(BrokerRules(tuple(symbols), "5m", BacktestConfig(), labels=LABELS))
    coming, took = iter(closes), {"no entry": [], "eight orders": []}

    def one_close():
        closed = next(coming)
        kind = "eight orders" if broker.waiting else "no entry"
        begun = time.thread_time_ns()
        broker.take(closed)
        took[kind].append((time.thread_time_ns() - begun) / 1e6)
        if len(took["no entry"]) % 10 == 9 and kind == "no entry":
            for symbol in symbols[:: len(symbols) // 8][:8]:
                stop = closed.candles[symbol]["close"] * 0.99
                name = f"{symbol} {closed.known_at.value}"
                broker.place(Order(name, name, symbol, "BUY", closed.known_at, 0.1, stop, "", 0.5, 0.1))

    benchmark.group, benchmark.name = "a close of a hundred symbols", "PaperBroker.take"
    benchmark.pedantic(one_close, rounds=len(closes) if benchmark.enabled else 1)
    for name, found in took.items():
        if found:
            middle, high = np.quantile(found, [0.5, 0.99])
            benchmark.extra_info[name] = {"median_ms": round(middle, 2), "p99_ms": round(high, 2)}
            print(f"{name}: median {middle:.2f}, p99 {high:.2f} ms")
