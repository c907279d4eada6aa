"""Each of the 36 features of microstructure against its definition, on rows of real candles drawn at random.

Plain numpy over the candles of one window, means first and deviations from them after.
"""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from smc_ml.features.microstructure.clusters import MICROSTRUCTURE
from smc_ml.features.table import feature_table

ROOT = 3 - 2 * math.sqrt(2)


class Window:
    "The candles up to a row, by their last ones."

    def __init__(self, candles: pd.DataFrame):
        self.opens, self.high, self.low, self.close, self.volume = (
            candles[name].to_numpy() for name in ("open", "high", "low", "close", "volume")
        )
        self.returns = np.append(np.nan, np.log(self.close[1:] / self.close[:-1]))
        self.flow = np.full(len(candles), np.nan)
        for row in range(len(candles) - 300, len(candles)):
            usual = math.sqrt(np.mean(self.returns[row - 47 : row + 1] ** 2))
            self.flow[row] = self.volume[row] * math.erf(self.returns[row] / usual / math.sqrt(2))

    def last(self, values: np.ndarray, count: int, before: int = 0) -> np.ndarray:
        return values[len(values) - count - before : len(values) - before]

    def usual(self, count: int) -> float:
        return math.sqrt(np.mean(self.last(self.returns, count) ** 2))

    def true_ranges(self, count: int) -> np.ndarray:
        before = self.last(self.close, count, 1)
        top = np.maximum(self.last(self.high, count), before)
        return np.log(top / np.minimum(self.last(self.low, count), before))

    def share(self, values: np.ndarray, count: int) -> float:
        "Sum of some values over that of the volume."
        return self.last(values, count).sum() / self.last(self.volume, count).sum()


def roll(window: Window, count: int) -> float:
    mean = np.mean(window.last(window.returns, count) * window.last(window.returns, count, 1))
    return 2e4 * math.sqrt(max(-mean, 0.0))


def corwin_schultz(window: Window, count: int) -> float:
    spreads = []
    for back in range(count):
        row = len(window.close) - 1 - back
        high, low, before = window.high[row], window.low[row], window.close[row - 1]
        shift = before / low if low > before else before / high if high < before else 1.0
        high, low = high * shift, low * shift
        beta = math.log(high / low) ** 2 + math.log(window.high[row - 1] / window.low[row - 1]) ** 2
        gamma = math.log(max(high, window.high[row - 1]) / min(low, window.low[row - 1])) ** 2
        alpha = (math.sqrt(2 * beta) - math.sqrt(beta)) / ROOT - math.sqrt(gamma / ROOT)
        spreads.append(max(2 * (math.exp(alpha) - 1) / (1 + math.exp(alpha)), 0.0))
    return 1e4 * np.mean(spreads)


def abdi_ranaldo(window: Window, count: int) -> float:
    middle = (np.log(window.high) + np.log(window.low)) / 2
    close = np.log(window.last(window.close, count, 1))
    mean = np.mean((close - window.last(middle, count, 1)) * (close - window.last(middle, count)))
    return 2e4 * math.sqrt(max(mean, 0.0))


def close_to_range(window: Window, count: int) -> float:
    ranges = np.log(window.last(window.high, count) / window.last(window.low, count))
    parkinson = np.sum(ranges**2) / (4 * math.log(2))
    return math.log(np.sum(window.last(window.returns, count) ** 2) / parkinson)


def kyle(window: Window, count: int) -> tuple[float, float]:
    "Slope through the origin in usual returns a usual volume, and the share of the squares that it explains."
    flow, moved = window.last(window.flow, count), window.last(window.returns, count)
    slope = (flow @ moved) / (flow @ flow)
    fit = 1 - np.sum((moved - slope * flow) ** 2) / np.sum(moved**2)
    return slope * window.last(window.volume, count).mean() / window.usual(count), fit


def asymmetry(window: Window, count: int) -> float:
    moved, volume = window.last(window.returns, count), window.last(window.volume, count)
    still = volume[moved == 0].sum() / 2
    up = moved[moved > 0].sum() / (volume[moved > 0].sum() + still)
    down = -moved[moved < 0].sum() / (volume[moved < 0].sum() + still)
    return (up - down) / (up + down)


def about_zero(one: np.ndarray, other: np.ndarray) -> float:
    "Correlation without subtracting the means."
    return (one @ other) / math.sqrt((one @ one) * (other @ other))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    one, other = one - one.mean(), other - other.mean()
    return (one @ other) / math.sqrt((one @ one) * (other @ other))


def wick(window: Window, count: int) -> float:
    opens, close, high, low, volume = (
        window.last(values, count)
        for values in (window.opens, window.close, window.high, window.low, window.volume)
    )
    lower, upper = np.minimum(opens, close) - low, high - np.maximum(opens, close)
    return ((lower - upper) * volume).sum() / ((high - low) * volume).sum()


def illiquidity(window: Window, count: int) -> float:
    size = np.abs(window.returns) / window.volume
    return math.log(window.last(size, count).mean() / window.last(size, 288).mean())


def heaviest(window: Window) -> int:
    "Candles since the one with the most volume of 48."
    return int(np.argmax(window.last(window.volume, 48)[::-1]))


SLOW: dict[str, Callable[[Window], float]] = {
    "zero_return_share_288": lambda w: np.mean(w.last(w.close, 288) == w.last(w.close, 288, 1)),
    "tick_imbalance_48": lambda w: w.share(np.sign(w.returns) * w.volume, 48),
    "flow_persistence_288": lambda w: about_zero(w.last(w.flow, 288), w.last(w.flow, 288, 1)),
    "volume_of_day_12": lambda w: math.log(w.last(w.volume, 12).mean() / w.last(w.volume, 288).mean()),
    "volume_concentration_48": lambda w: math.log(
        48 * np.sum((w.last(w.volume, 48) / w.last(w.volume, 48).sum()) ** 2)
    ),
    "volume_volatility_correlation_48": lambda w: correlation(w.true_ranges(48), w.last(w.volume, 48)),
    "volume_return_correlation_48": lambda w: correlation(w.last(w.returns, 48), w.last(w.volume, 48)),
    "heaviest_return_48": lambda w: w.returns[-1 - heaviest(w)] / w.usual(48),
    "heaviest_distance_48": lambda w: (
        math.log(w.close[-1] / w.close[-1 - heaviest(w)]) / math.sqrt(48) / w.usual(48)
    ),
}
for _count in (48, 288):
    SLOW |= {
        f"roll_spread_{_count}": lambda w, n=_count: roll(w, n),
        f"corwin_schultz_spread_{_count}": lambda w, n=_count: corwin_schultz(w, n),
        f"abdi_ranaldo_spread_{_count}": lambda w, n=_count: abdi_ranaldo(w, n),
        f"close_to_range_variance_{_count}": lambda w, n=_count: close_to_range(w, n),
        f"vpin_{_count}": lambda w, n=_count: w.share(np.abs(w.flow), n),
        f"kyle_lambda_{_count}": lambda w, n=_count: kyle(w, n)[0],
        f"kyle_fit_{_count}": lambda w, n=_count: kyle(w, n)[1],
        f"impact_asymmetry_{_count}": lambda w, n=_count: asymmetry(w, n),
        f"flow_continuation_{_count}": lambda w, n=_count: about_zero(
            w.last(w.returns, n), w.last(w.flow, n, 1)
        ),
    }
for _count in (12, 48):
    SLOW |= {
        f"illiquidity_{_count}": lambda w, n=_count: illiquidity(w, n),
        f"wick_pressure_{_count}": lambda w, n=_count: wick(w, n),
        f"volume_weighted_return_{_count}": lambda w, n=_count: (
            math.sqrt(n) * w.share(w.returns * w.volume, n) / w.usual(288)
        ),
    }
for _count in (12, 48, 288):
    SLOW |= {f"bulk_imbalance_{_count}": lambda w, n=_count: w.share(w.flow, n)}


def test_there_is_a_slow_version_of_every_feature():
    assert set(SLOW) == set(MICROSTRUCTURE.features) and len(SLOW) == 36


@pytest.mark.parametrize("coin", ["bitcoin", "ether"])
def test_every_feature_is_its_definition_on_real_candles(coin, request):
    candles = request.getfixturevalue(coin).iloc[40_000:46_000]
    table = feature_table(candles, families=[MICROSTRUCTURE])
    size = table.abs().median()
    for row in np.random.default_rng(5).choice(np.arange(400, len(candles)), 40, replace=False):
        window = Window(candles.iloc[row - 399 : row + 1])
        for name, slow in SLOW.items():
            right, found = slow(window), table[name].iloc[row]
            assert abs(found - right) <= 1e-9 * max(abs(right), size[name]), (name, row, found, right)
