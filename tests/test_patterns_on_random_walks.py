"""On a driftless random walk no pattern says what comes next, once it is entered when it is known."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from smc_ml.candles import TIMEFRAMES
from smc_ml.patterns.detection import detect_patterns
from smc_ml.patterns.names import KINDS
from smc_ml.simulation.market import random_walk

WALKS, CANDLES, AHEAD = 20, 20_000, 5


def apart(rows: np.ndarray) -> np.ndarray:
    "Rows to keep so that no two share a candle of the five that follow: else one question is asked twice."
    keep, last = np.zeros(len(rows), bool), -AHEAD
    for index, row in enumerate(rows):
        if row - last >= AHEAD:
            keep[index], last = True, row
    return keep


@cache
def right_calls(clock: str) -> pd.DataFrame:
    "For each kind, entered at `clock`: questions asked, and how often the fifth close lay in its direction."
    parts = []
    for seed in range(WALKS):
        candles = random_walk(CANDLES, seed, steps=10)
        patterns = detect_patterns(candles)
        rows = (
            candles.index.searchsorted(patterns["known_at"] - TIMEFRAMES["5m"])
            if clock == "known_at"
            else candles.index.searchsorted(patterns["formed_at"])
        )
        asked = (
            pd.DataFrame(
                {"kind": patterns["kind"].astype(str), "row": rows, "direction": patterns["direction"]}
            )[rows + AHEAD < CANDLES]
            .drop_duplicates(["kind", "row"])
            .sort_values("row", kind="stable")
        )
        asked = asked[
            asked.groupby("kind")["row"].transform(lambda rows: apart(rows.to_numpy())).astype(bool)
        ]
        close = candles["close"].to_numpy()
        parts.append(
            asked.assign(right=(close[asked["row"] + AHEAD] - close[asked["row"]]) * asked["direction"] > 0)
        )
    return pd.concat(parts).groupby("kind")["right"].agg(["size", "sum"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_five_candles_are_a_coin(kind):
    asked, right = right_calls("known_at").loc[kind]
    low, high = binom.interval(0.99, asked, 0.5)
    assert asked > 500
    assert low <= right <= high, f"{right} of {asked} = {right / asked:.1%}"


@pytest.mark.parametrize("kind", ["swing_high", "order_block", "fair_value_gap"])
def test_the_same_patterns_read_too_early_are_prophets(kind):
    "What the test above is there to catch: entered where they formed, they know the future."
    asked, right = right_calls("formed_at").loc[kind]
    assert right > binom.interval(0.999999, asked, 0.5)[1], f"{right} of {asked}"
