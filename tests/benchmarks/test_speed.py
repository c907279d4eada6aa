"""Speed, side by side with the peer in the same run; absolute times depend on the machine, ratios do not.
`make bench` runs it."""

import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import talib
import torch
from conftest import BTC, by_timeframe, real_candles
from test_presets import Chart

from smc_ml.features.table import feature_table, smc_features
from smc_ml.indicators.momentum import CCIIndicator, RSIIndicator
from smc_ml.indicators.trailing import ChandelierExitIndicator, SuperTrendIndicator
from smc_ml.indicators.trend import ADXIndicator, WaveTrendIndicator
from smc_ml.labels.barriers import barrier_exits, limit_fills
from smc_ml.labels.config import LabelingConfig
from smc_ml.labels.horizons import horizon_targets
from smc_ml.labels.outcomes import label_patterns
from smc_ml.models.config import LSTMConfig
from smc_ml.models.lstm import LSTMClassifier, LSTMNetwork
from smc_ml.models.windows import Windows
from smc_ml.patterns.config import PatternConfig
from smc_ml.patterns.detection import detect_patterns, detect_timeframes
from smc_ml.patterns.streaming import PatternStream, candles_of
from smc_ml.simulation.config import SimulationConfig
from smc_ml.simulation.market import random_walk, simulate_market


@pytest.fixture(scope="module")
def year() -> pd.DataFrame:
    "A year of candles: real ones where they are at hand, simulated ones elsewhere."
    return (
        real_candles(BTC)
        if BTC.exists()
        else simulate_market(["SIM"], "2023-01-01", "2024-01-01", SimulationConfig())["SIM"].candles
    )


CORE = PatternConfig(
    periods=(),
    kinds=(
        "swing_high",
        "swing_low",
        "break_of_structure",
        "change_of_character",
        "market_structure_shift",
        "order_block",
        "fair_value_gap",
        "liquidity_sweep",
        "liquidity_run",
    ),
)
SIZES = [10_000, 50_000, 200_000]


@pytest.fixture(scope="module")
def long_walk() -> pd.DataFrame:
    "A million candles of a random walk."
    return random_walk(1_000_000, seed=0)


def within(benchmark, seconds: float) -> None:
    "The fastest round keeps the budget; slower ones tell of the machine."
    if benchmark.enabled:
        assert benchmark.stats.stats.min < seconds


@pytest.mark.parametrize("candles", SIZES)
def test_all_kinds(benchmark, long_walk, candles):
    benchmark.group, benchmark.name = f"patterns, {candles} candles", "smc_ml, all 21 kinds"
    table = benchmark.pedantic(detect_patterns, (long_walk.iloc[:candles],), warmup_rounds=1, rounds=10)
    assert len(table) > candles
    if candles == 200_000:
        within(benchmark, 0.3)


@pytest.mark.parametrize("slow", [False, True], ids=["smc_ml", "plain loops"])
def test_the_chart_s_reading(benchmark, long_walk, slow):
    "The preset beside the plain loops that say what the chart draws."
    candles, group = long_walk.iloc[:10_000], "patterns of the chart's reading, 10000 candles"
    benchmark.group, benchmark.name = group, "plain loops" if slow else "smc_ml, preset tradingview"
    read = (lambda: Chart(candles, False, False, "atr").draw()) if slow else None
    preset = PatternConfig.preset("tradingview", periods=())
    benchmark.pedantic(read or (lambda: detect_patterns(candles, preset)), warmup_rounds=1, rounds=3)
    if not slow:
        within(benchmark, 0.1)


@pytest.mark.parametrize("candles", SIZES)
def test_core_kinds(benchmark, long_walk, candles):
    benchmark.group, benchmark.name = (
        f"patterns, {candles} candles",
        "smc_ml, gaps swings structure blocks sweeps",
    )
    assert (
        len(benchmark.pedantic(detect_patterns, (long_walk.iloc[:candles], CORE), warmup_rounds=1, rounds=10))
        > candles / 2
    )
    if candles == 200_000:
        within(benchmark, 0.1)


@pytest.mark.parametrize("candles", SIZES)
def test_peer_patterns(benchmark, long_walk, candles):
    os.environ["SMC_CREDIT"] = "0"
    from smartmoneyconcepts import smc

    benchmark.group, benchmark.name = (
        f"patterns, {candles} candles",
        "smartmoneyconcepts, gaps swings structure blocks liquidity",
    )
    part = long_walk.iloc[:candles].reset_index(drop=True)

    def everything():
        swings = smc.swing_highs_lows(part, swing_length=3)
        return smc.fvg(part), smc.bos_choch(part, swings), smc.ob(part, swings), smc.liquidity(part, swings)

    benchmark.pedantic(everything, rounds=1)


def test_simulated_candles(benchmark):
    benchmark.group, benchmark.name = "simulated market, 100,800 candles", "smc_ml"
    market = benchmark.pedantic(
        simulate_market,
        (["SIM"], "2023-01-01", "2023-12-17", SimulationConfig(edge=0.4)),
        warmup_rounds=1,
        rounds=5,
    )["SIM"]
    assert len(market.candles) == 100_800 and len(market.truth)
    within(benchmark, 3.0)


def test_time_grows_with_the_candles_and_not_faster(benchmark, long_walk):
    def per_candle(rows: int) -> float:
        part, best = long_walk.iloc[:rows], np.inf
        for _ in range(5):
            begin = time.perf_counter()
            detect_patterns(part)
            best = min(best, time.perf_counter() - begin)
        return best / rows

    benchmark.group, benchmark.name = "patterns, growth", "smc_ml, 1,000,000 candles"
    short = per_candle(50_000)
    benchmark.pedantic(detect_patterns, (long_walk,), warmup_rounds=1, rounds=3)
    benchmark.extra_info["ratio_per_candle"] = ratio = (
        benchmark.stats.stats.min / len(long_walk) if benchmark.enabled else per_candle(len(long_walk))
    ) / short
    assert ratio < 1.5


@pytest.mark.parametrize("history", [2_000, 50_000])
def test_a_candle_in_the_stream(benchmark, long_walk, history):
    benchmark.group, benchmark.name = "patterns, one candle in a stream", f"smc_ml, after {history} candles"
    stream = PatternStream(timeframe="5m")
    stream.feed(long_walk.iloc[:history])
    coming = candles_of(long_walk.iloc[history : history + 12_000])
    benchmark.pedantic(lambda: stream.update(next(coming)), rounds=10_000)
    if benchmark.enabled:
        assert benchmark.stats.stats.median < 50e-6


def test_a_fresh_process_is_ready_at_once(benchmark, long_walk, tmp_path):
    "Import and first call, with compiled functions on disk."
    path = tmp_path / "candles.parquet"
    long_walk.iloc[:1000].to_parquet(path)
    call = [
        "import pandas",
        "from smc_ml.patterns.detection import detect_patterns",
        "from smc_ml.patterns.streaming import PatternStream, candles_of",
        f"candles = pandas.read_parquet({str(path)!r})",
        "detect_patterns(candles)",
        "PatternStream().feed(candles[:50])",
    ]
    benchmark.group, benchmark.name = "patterns, a fresh process", "smc_ml, import to first table"
    benchmark.pedantic(
        subprocess.run, ([sys.executable, "-c", "; ".join(call)],), {"check": True}, warmup_rounds=1, rounds=5
    )
    within(benchmark, 2.0)


def test_labels_of_a_year(benchmark, year):
    benchmark.group = "labels and features of a year"
    patterns = detect_timeframes(by_timeframe(year))
    assert (
        len(benchmark.pedantic(label_patterns, (year, patterns, "BTCUSDT"), warmup_rounds=1, rounds=5)) > 1000
    )


def test_horizons_of_a_year(benchmark, year):
    "Returns, directions, drawdowns and rallies over four horizons, from every candle."
    benchmark.group = "labels and features of a year"
    assert benchmark.pedantic(horizon_targets, (year,), warmup_rounds=1, rounds=5).shape == (len(year), 16)
    within(benchmark, 1.0)


def test_fifty_thousand_trades(benchmark, long_walk):
    "Limit orders and barriers of 50,000 events on 200,000 candles, from arrays."
    candles, generator, count = long_walk.iloc[:200_000], np.random.default_rng(1), 50_000
    open_, high, low = (candles[name].to_numpy() for name in ("open", "high", "low"))
    start, side = np.sort(generator.integers(20, 199_000, count)), generator.choice([-1, 1], count)
    limit = open_[start] * (1 - side * generator.uniform(0, 0.004, count))

    def outcomes():
        filled, price = limit_fills(open_, high, low, start, side, limit, 144)
        return barrier_exits(
            open_,
            high,
            low,
            filled,
            side,
            price * (1 - 0.006 * side),
            price * (1 + 0.009 * side),
            144,
            0,
            price,
        )

    benchmark.group = "labels of 50,000 events on 200,000 candles"
    assert (benchmark.pedantic(outcomes, warmup_rounds=1, rounds=10)[0] >= 0).sum() > 25_000
    within(benchmark, 0.2)


@pytest.mark.parametrize("entry", ["next_open", "limit_edge"])
def test_fifty_thousand_labels(benchmark, long_walk, entry):
    "The whole table, checks and confluence included."
    candles = long_walk.iloc[:200_000]
    config = LabelingConfig(
        entry=entry, timeframes=["5m"], kinds=["order_block", "fair_value_gap", "liquidity_sweep"]
    )
    patterns = detect_timeframes(by_timeframe(candles))
    benchmark.group = "labels of 50,000 events on 200,000 candles"
    assert (
        len(
            benchmark.pedantic(label_patterns, (candles, patterns, "WALK", config), warmup_rounds=1, rounds=5)
        )
        > 10_000
    )


def test_two_wanted_features_of_a_year(benchmark, year):
    "Only what is wanted is computed: without patterns, a small part of all."
    benchmark.group = "labels and features of a year"
    wanted = ["price_momentum", "volatility_ratio"]
    table = benchmark.pedantic(feature_table, (year,), {"wanted": wanted}, warmup_rounds=1, rounds=5)
    assert list(table) == wanted
    within(benchmark, 0.2)


def test_features_of_a_year(benchmark, year):
    benchmark.group = "labels and features of a year"
    patterns = detect_timeframes(by_timeframe(year))
    assert np.isfinite(
        benchmark.pedantic(smc_features, (year, patterns), warmup_rounds=1, rounds=5).iloc[-1]
    ).all()


@pytest.fixture(scope="module")
def samples() -> Windows:
    "2,000 windows of 60 rows of 16 features."
    values = np.random.default_rng(0).normal(size=(2_060, 16)).astype(np.float32)
    return Windows(values, np.arange(60, 2_060), tuple(f"feature_{number}" for number in range(16)), 60)


NETWORK = LSTMConfig(layers=1, hidden=32, epochs=2, dropout=0.0)


def test_training_an_lstm(benchmark, samples):
    "Two epochs of the one loop, and what a bare one over a copied array would take."
    won = samples.last()[:, 0] > 0
    benchmark.group, benchmark.name = "LSTM of 32 units, 2,000 windows of 60 rows, two epochs", "smc_ml"
    model = LSTMClassifier(**NETWORK.model_dump())
    benchmark.pedantic(model.fit, (samples, won), warmup_rounds=1, rounds=5)
    assert len(model.history_) == 2


def test_training_an_lstm_bare(benchmark, samples):
    benchmark.group, benchmark.name = (
        "LSTM of 32 units, 2,000 windows of 60 rows, two epochs",
        "bare torch loop",
    )
    windows = torch.from_numpy(samples.batch(slice(None)).copy())
    won = (windows[:, -1, 0] > 0).float()

    def bare():
        network = LSTMNetwork(16, 60, 1, NETWORK)
        optimizer = torch.optim.AdamW(network.parameters(), lr=0.001)
        for _ in range(NETWORK.epochs):
            for chosen in torch.randperm(len(windows)).split(NETWORK.batch_size):
                optimizer.zero_grad()
                logits = network(windows[chosen]).squeeze(-1)
                torch.nn.functional.binary_cross_entropy_with_logits(logits, won[chosen]).backward()
                optimizer.step()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    benchmark.pedantic(bare, warmup_rounds=1, rounds=5)
    torch.set_num_threads(threads)


def test_batches_of_windows(benchmark, samples):
    "The windows of 64 samples, oldest row first."
    chosen = np.random.default_rng(0).permutation(2_000)[:64]
    benchmark.group, benchmark.name = "64 windows of 60 rows of 16 features", "smc_ml"
    assert benchmark(samples.batch, chosen).shape == (64, 60, 16)


def wavetrend_of_talib(high, low, close):
    "WaveTrend from TA-Lib's averages, which has none of its own."
    typical = (high + low + close) / 3
    away = typical - talib.EMA(typical, 10)
    return talib.SMA(talib.EMA(away / (0.015 * talib.EMA(np.abs(away), 10)), 21), 4)


def directions_of_talib(*prices):
    return talib.ADX(*prices, 14), talib.PLUS_DI(*prices, 14), talib.MINUS_DI(*prices, 14)


INDICATORS = {
    RSIIndicator: lambda high, low, close: talib.RSI(close, 14),
    CCIIndicator: lambda *prices: talib.CCI(*prices, 20),
    ADXIndicator: directions_of_talib,
    WaveTrendIndicator: wavetrend_of_talib,
    SuperTrendIndicator: lambda *prices: talib.SUPERTREND(*prices, 10, 3.0),
    ChandelierExitIndicator: None,
}


@pytest.mark.parametrize("indicator", INDICATORS, ids=lambda kind: kind.__name__)
def test_a_torch_indicator_of_two_years(benchmark, long_walk, indicator):
    "Two symbols of 105,000 candles at once, on one thread; TA-Lib's time for the same is noted beside it."
    columns = ("high", "low", "close")
    stacked = {name: long_walk[name].to_numpy()[:210_000].reshape(2, -1) for name in columns}
    benchmark.group, benchmark.name = "indicators, two symbols of 105,000 candles", indicator.__name__
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    benchmark.pedantic(indicator().calculate, (stacked,), warmup_rounds=1, rounds=5)
    torch.set_num_threads(threads)
    within(benchmark, 1.0)
    if (peer := INDICATORS[indicator]) and benchmark.enabled:
        best = np.inf
        for _ in range(5):
            begin = time.perf_counter()
            for prices in zip(*stacked.values(), strict=True):
                peer(*prices)
            best = min(best, time.perf_counter() - begin)
        benchmark.extra_info["ratio_to_talib"] = benchmark.stats.stats.min / best


@pytest.mark.parametrize("indicator", INDICATORS, ids=lambda kind: kind.__name__)
def test_a_candle_in_a_torch_indicator(benchmark, long_walk, indicator):
    benchmark.group, benchmark.name = "indicators, one candle in a stream", indicator.__name__
    stream = indicator()
    stream.start(long_walk.iloc[:2000])
    coming = iter(long_walk.iloc[2000:3200][["high", "low", "close"]].to_dict("records"))
    benchmark.pedantic(lambda: stream.update(next(coming)), rounds=1000)
    if benchmark.enabled:
        assert benchmark.stats.stats.median < 3e-3
