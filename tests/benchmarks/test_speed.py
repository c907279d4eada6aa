"""Speed, side by side with the peer in the same run; absolute times depend on the machine, ratios do not. `make bench` runs it."""
import os
import numpy as np
import pandas as pd
import pytest
from conftest import BTC, by_timeframe, real_candles
from smc_ml.data.simulator import SimulationConfig, simulate_market
from smc_ml.features.smc import smc_features
from smc_ml.labels.outcomes import label_patterns
from smc_ml.patterns.detection import detect_patterns, detect_timeframes

@pytest.fixture(scope="module")
def year() -> pd.DataFrame:
    "A year of candles: real ones where they are at hand, simulated ones elsewhere."
    return real_candles(BTC) if BTC.exists() else simulate_market(["SIM"], "2023-01-01", "2024-01-01", SimulationConfig())["SIM"].candles

@pytest.mark.parametrize("candles", [25_000, 50_000, 105_120])
def test_all_patterns(benchmark, year, candles):
    benchmark.group = "patterns, one timeframe"
    benchmark.name = f"smc_ml, {candles} candles"
    table = benchmark.pedantic(detect_patterns, (year.iloc[:candles],), warmup_rounds=1, rounds=10)
    assert len(table) > candles / 10

@pytest.mark.parametrize("candles", [5_000, 10_000])
def test_peer_patterns(benchmark, year, candles):
    os.environ["SMC_CREDIT"] = "0"
    from smartmoneyconcepts import smc
    benchmark.group = "patterns, one timeframe"
    benchmark.name = f"smartmoneyconcepts, {candles} candles"
    part = year[["open", "high", "low", "close", "volume"]].iloc[:candles].reset_index(drop=True)
    def everything():
        swings = smc.swing_highs_lows(part, swing_length=3)
        return smc.fvg(part), smc.bos_choch(part, swings), smc.ob(part, swings), smc.liquidity(part, swings)
    benchmark.pedantic(everything, rounds=1)

def test_labels_of_a_year(benchmark, year):
    benchmark.group = "labels and features of a year"
    patterns = detect_timeframes(by_timeframe(year))
    assert len(benchmark.pedantic(label_patterns, (year, patterns, "BTCUSDT"), warmup_rounds=1, rounds=5)) > 1000

def test_features_of_a_year(benchmark, year):
    benchmark.group = "labels and features of a year"
    patterns = detect_timeframes(by_timeframe(year))
    assert np.isfinite(benchmark.pedantic(smc_features, (year, patterns), warmup_rounds=1, rounds=5).iloc[-1]).all()
