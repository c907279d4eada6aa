"""The simulated market behaves like the real year, is the same on every machine, and tells no direction."""

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from numpy._core._multiarray_umath import __cpu_dispatch__

from smc_ml.candles import CandleError, resample
from smc_ml.simulation.config import SimulationConfig
from smc_ml.simulation.market import random_walk, simulate_market
from smc_ml.simulation.stylised_facts import NOT_MET, compare_facts, stylised_facts

FACTS = list(stylised_facts(random_walk(28 * 288, seed=1)))


@pytest.fixture(scope="module")
def real(bitcoin, ether) -> dict[str, dict[str, float]]:
    return {"BTC": stylised_facts(bitcoin), "ETH": stylised_facts(ether)}


@pytest.fixture(scope="module")
def table(real) -> pd.DataFrame:
    "The real year beside simulated ones, of seeds that the settings were not chosen with."
    simulated = [
        market.candles
        for seed in (31, 32, 33, 34)
        for market in simulate_market(
            ["SIM-A", "SIM-B"], "2023-01-01", "2024-01-01", SimulationConfig(seed=seed)
        ).values()
    ]
    return compare_facts(real, [stylised_facts(candles) for candles in simulated])


@pytest.mark.parametrize("fact", [name for name in FACTS if name not in NOT_MET])
def test_the_simulated_market_is_like_the_real_ones(table, fact):
    row = table.loc[fact]
    allowed = f"{row['allowed_low']:.3f} to {row['allowed_high']:.3f}"
    assert row["alike"], f"{fact}: simulated {row['simulated']:.3f}, allowed {allowed}"


@pytest.mark.parametrize("fact", NOT_MET)
def test_what_is_said_not_to_be_met_is_not(table, fact):
    assert not table.at[fact, "alike"], f"{fact} is met: take it out of NOT_MET"


def test_the_real_markets_are_like_each_other(real):
    assert compare_facts({"BTC": real["BTC"]}, [real["ETH"]])["alike"].all()


def test_a_random_walk_is_not_like_them(real):
    alike = compare_facts(real, [stylised_facts(random_walk(365 * 288, seed)) for seed in (1, 2)])["alike"]
    for family in (
        "size_autocorrelation_1h",
        "trimmed_kurtosis_5m",
        "volume_volatility_correlation",
        "size_busiest_hour",
        "volume_weekend",
        "range_ratio",
    ):
        assert not alike[family]


def test_a_single_candle_makes_the_kurtosis_of_the_real_year(bitcoin):
    largest = bitcoin["close"].pct_change().abs().idxmax()
    before = bitcoin.index.get_loc(largest)
    without = pd.concat(
        [bitcoin.iloc[:before], bitcoin.iloc[before + 1 :]]
    )  # a hole: its return is missing, and so is the next
    assert stylised_facts(without)["kurtosis_5m"] < stylised_facts(bitcoin)["kurtosis_5m"] / 3


@pytest.mark.parametrize("timeframe", ["15m", "1h", "90m", "4h"])
def test_facts_of_longer_candles_are_those_of_the_same_horizon(bitcoin, timeframe):
    "Kurtosis of a horizon is the same whatever candles its returns are made of; the timeframe is read."
    facts = stylised_facts(resample(bitcoin, "5m", timeframe), timeframe=timeframe)
    assert facts == stylised_facts(resample(bitcoin, "5m", timeframe))
    own = stylised_facts(bitcoin)
    shared = [name for name in facts if name in own and "kurtosis" in name]
    assert f"kurtosis_{timeframe}" in facts and "kurtosis_1d" in shared and "kurtosis_5m" not in facts
    for name in shared:
        assert facts[name] == pytest.approx(own[name], rel=1e-12)
    assert "size_autocorrelation_7d" in facts and len(facts) == len(set(facts)) >= 20
    assert compare_facts({"BTC": facts}, [facts])["alike"].all()


def test_facts_of_different_timeframes_are_not_compared(bitcoin):
    with pytest.raises(CandleError, match="_5m is not measured on all series: give candles of one timeframe"):
        compare_facts({"BTC": stylised_facts(bitcoin)}, [stylised_facts(resample(bitcoin, "5m", "15m"))])


def test_few_candles_are_refused(bitcoin):
    with pytest.raises(CandleError, match="BTC: 500 candles from .* too few"):
        stylised_facts(bitcoin.iloc[:500], "BTC")


PRINT_HASH = """
import hashlib
from smc_ml.simulation.market import SimulationConfig, simulate_market
market = simulate_market(["SIM-A", "SIM-B"], "2024-01-01", "2024-02-11", SimulationConfig(edge=0.3))["SIM-B"]
zones = market.truth[["top", "bottom", "direction"]].to_numpy(float)
digest = hashlib.sha256(market.candles.to_numpy().tobytes())
digest.update(zones.tobytes() + market.regimes.to_numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.parametrize("plain", [False, True], ids=["this processor", "a plain processor"])
def test_the_same_seed_gives_the_same_bytes_everywhere(tmp_path, plain):
    """Once as this machine likes it, once without any instruction that only newer processors have;
    and as on the machine on which the hash was noted."""
    limits = (
        {
            "NUMBA_CPU_NAME": "generic",
            "NUMBA_CPU_FEATURES": "",
            "NPY_DISABLE_CPU_FEATURES": " ".join(__cpu_dispatch__),
            "NUMBA_CACHE_DIR": str(tmp_path),
        }
        if plain
        else {}
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PRINT_HASH],
        cwd=ROOT,
        env=os.environ | limits,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "b715780f080518deeac4e85e15eb93cfb6fd7a28113e2fdb62d312dac668d46f"


@pytest.mark.parametrize("regime", [-1, 0, 1])
def test_who_knows_the_regime_earns_nothing(regime):
    "Mean return of the next hour, in standard errors, and of the candle itself, over eight symbol-years."
    markets = [
        market
        for seed in range(21, 25)
        for market in simulate_market(
            ["SIM-A", "SIM-B"], "2023-01-01", "2024-01-01", SimulationConfig(seed=seed, trend=0.8)
        ).values()
    ]
    for ahead in (1, 12):
        moves = np.concatenate(
            [
                (market.candles["close"].pct_change(ahead).shift(1 - ahead)[market.regimes == regime])
                .dropna()
                .to_numpy()[::ahead]
                for market in markets
            ]
        )
        assert abs(moves.mean()) < 3 * moves.std() / len(moves) ** 0.5
