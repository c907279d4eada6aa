"""What every declared feature promises, on real candles.

Nothing ahead, an honest memory, its mirror image, a value where nothing moves. In short in every run; with
more cuts and ends with `make proofs`.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import pytest

from smc_ml.candles import PRICES, Market
from smc_ml.causality import POISONS, poisoned, random_cuts
from smc_ml.features.config import FeatureConfig
from smc_ml.features.cross_section import beside
from smc_ml.features.inputs import FeatureInputs
from smc_ml.features.table import FEATURE_FAMILIES, feature_catalogue, feature_tables
from smc_ml.patterns.config import PatternConfig
from smc_ml.patterns.detection import detect_timeframes

OF_CANDLES = [family for family in FEATURE_FAMILIES if family.default and family.name != "smc"]
CATALOGUE = feature_catalogue()
LONGEST = max(facts.lookback for facts in CATALOGUE)
OWN = pytest.mark.parametrize("family", OF_CANDLES, ids=lambda family: family.name)


def patterns_of(market: Market) -> dict[str, pd.DataFrame]:
    found = {name: market.at(name) for name in PatternConfig().timeframes}
    return {symbol: detect_timeframes({name: at[symbol] for name, at in found.items()}) for symbol in market}


def tables_of(market: Market, families=FEATURE_FAMILIES, wanted=None) -> dict[str, pd.DataFrame]:
    smc = any(family.name == "smc" for family in families)
    return feature_tables(market, patterns_of(market) if smc else None, families=families, wanted=wanted)


def part(market: Market, first: int, last: int) -> Market:
    return Market({symbol: candles.iloc[first:last] for symbol, candles in market.items()}, market.timeframe)


@pytest.fixture(scope="module")
def pair(bitcoin, ether) -> Market:
    "Two coins, a year."
    return Market({"BTCUSDT": bitcoin, "ETHUSDT": ether}, "5m")


@pytest.fixture(scope="module")
def stretch(pair) -> Market:
    "As much of it as fills every memory, and 3,000 candles more."
    return part(pair, 60_000, 60_000 + LONGEST + 3000)


def far_apart(one: np.ndarray, other: np.ndarray, size: np.ndarray) -> np.ndarray:
    "Where two rows or tables differ by more than 1e-9 of their value or of the feature's own size."
    near = np.abs(one - other) <= 1e-9 * np.maximum(np.maximum(np.abs(one), np.abs(other)), size)
    return ~(near | (np.isnan(one) & np.isnan(other)))


def size_of(table: pd.DataFrame) -> np.ndarray:
    "The median absolute value of each feature, one column after the other."
    return table.abs().median().to_numpy()


# Nothing looks ahead


def telling_rows(whole: Mapping[str, pd.DataFrame], cuts: int) -> np.ndarray:
    "Random cuts, and for each feature that does not change right after one of them, one where it does."
    rows = random_cuts(len(whole["BTCUSDT"]), cuts, seed=1, first=LONGEST + 100)
    table, random = whole["BTCUSDT"], np.random.default_rng(3)
    changes = (table.diff() != 0).to_numpy() & (np.arange(len(table)) > LONGEST + 100)[:, None]
    for column in range(table.shape[1]):
        if not changes[rows, column].any():
            rows = np.append(rows, random.choice(np.flatnonzero(changes[:, column])))
    return np.unique(rows)


@pytest.mark.parametrize("cuts", [6, pytest.param(200, marks=pytest.mark.slow)])
def test_no_feature_looks_ahead_and_a_peek_at_one_candle_is_seen_in_each(stretch, cuts):
    whole = tables_of(stretch)
    caught: set[str] = set()
    ends = telling_rows(whole, cuts)
    for end in ends:
        for symbol, table in tables_of(part(stretch, 0, end)).items():
            tail = slice(end - 20, end)
            pd.testing.assert_frame_equal(table.iloc[tail], whole[symbol].iloc[tail], check_exact=True)
            peek = table.shift(-1).ffill().iloc[-1]  # the row of the next candle, as far as there is one
            caught |= set(table.columns[(peek != whole[symbol].iloc[end]).to_numpy()])
    print(f"a peek at one candle: caught in {len(caught)} of {len(CATALOGUE)} features, {len(ends)} cuts")
    assert caught == set(CATALOGUE.names)


@OWN
def test_no_feature_sees_a_poisoned_future(stretch, family):
    "Of finite poisons: candles that are not finite are refused before any feature sees them."
    rows = len(stretch["BTCUSDT"])
    end = rows - 1500
    whole = tables_of(stretch, [family])
    for poison in [name for name in POISONS if name != "NaN"]:
        changed = Market({symbol: poisoned(one, end, poison) for symbol, one in stretch.items()}, "5m")
        for symbol, table in tables_of(changed, [family]).items():
            pd.testing.assert_frame_equal(
                table.iloc[LONGEST:end], whole[symbol].iloc[LONGEST:end], check_exact=True
            )


# Honest memories


def by_lookback(family) -> dict[int, list[str]]:
    groups: dict[int, list[str]] = {}
    for facts in CATALOGUE:
        if facts.family == family.name:
            groups.setdefault(facts.lookback, []).append(facts.name)
    return groups


@pytest.mark.parametrize("ends", [8, pytest.param(200, marks=pytest.mark.slow)])
@OWN
def test_a_feature_is_exact_from_its_lookback_on_and_not_from_a_third_less(stretch, family, ends):
    whole = tables_of(stretch, [family])["BTCUSDT"]
    size = pd.Series(size_of(whole), whole.columns)
    places = random_cuts(len(whole), ends, seed=2, first=LONGEST + 10)
    short: dict[str, int] = {}
    for lookback, names in by_lookback(family).items():
        for end in places:
            last = tables_of(part(stretch, end - lookback, end), [family], names)["BTCUSDT"].iloc[-1]
            wrong = far_apart(last.to_numpy(), whole[names].iloc[end - 1].to_numpy(), size[names].to_numpy())
            assert not wrong.any(), (lookback, end, list(np.array(names)[wrong]))
            less = raw_row(part(stretch, end - max(1, lookback * 2 // 3), end), family, names)
            wrong = far_apart(less, whole[names].iloc[end - 1].to_numpy(), size[names].to_numpy())
            for name in np.array(names)[wrong]:
                short[name] = short.get(name, 0) + 1
    remembering = [name for need, names in by_lookback(family).items() if need > 3 for name in names]
    too_long = [name for name in remembering if name not in short]
    assert not too_long if ends > 100 else len(too_long) <= 0.2 * len(remembering), too_long


def raw_row(market: Market, family, names) -> np.ndarray:
    "What the functions of the features say on the last row, whether that is exact or not."
    others = beside(market).get("BTCUSDT")
    inputs = FeatureInputs(FeatureConfig(), PatternConfig(), "5m", market["BTCUSDT"], others=others)
    return np.array([family.features[name].compute(inputs)[name][-1] for name in names])


# The chart turned upside down


def turned(candles: pd.DataFrame, way: str) -> pd.DataFrame:
    "The chart upside down: of the prices themselves, or of their logarithms."
    level = candles["high"].max() + candles["low"].min()
    upside_down = {
        "prices": lambda price: level - price,
        "logarithms": lambda price: level * (level / price) / 4,
    }[way]
    mirror = {"open": "open", "high": "low", "low": "high", "close": "close"}
    changed = {name: upside_down(candles[mirror[name]]) for name in PRICES}
    if "taker_buy_volume" in candles:
        changed["taker_buy_volume"] = candles["volume"] - candles["taker_buy_volume"]
    if "quote_volume" in candles:
        mean = candles["quote_volume"] / candles["volume"].where(candles["volume"] > 0)
        changed["quote_volume"] = (upside_down(mean) * candles["volume"]).fillna(0.0)
    return candles.assign(**changed)


@OWN
def test_each_feature_becomes_what_it_says_when_the_chart_is_turned_upside_down(stretch, family):
    before = tables_of(stretch, [family])["BTCUSDT"]
    error = pd.Series(np.inf, before.columns)
    for way in ("prices", "logarithms"):
        market = Market({symbol: turned(candles, way) for symbol, candles in stretch.items()}, "5m")
        after = tables_of(market, [family])["BTCUSDT"]
        for name, declared in family.features.items():
            wanted = after[declared.partner or name] * (-1 if declared.signed else 1)
            apart = (wanted - before[name]).abs() / np.maximum(
                before[name].abs(), before[name].abs().median()
            )
            assert (wanted.isna() == before[name].isna()).all(), name
            error[name] = min(error[name], float(apart.max()))
    assert error.max() < 1e-6, error[error >= 1e-6].to_dict()


# A year of real candles


def test_no_feature_is_constant_infinite_missing_or_another_one(pair):
    tables = tables_of(pair)
    for symbol, table in tables.items():
        exact = table.iloc[LONGEST - 1 :]
        assert not np.isinf(exact.to_numpy()).any(), symbol
        missing = exact.isna().mean()
        assert (missing == 0).all(), (symbol, missing[missing > 0].to_dict())
        assert (exact.std() > 0).all(), (symbol, list(exact.columns[exact.std() == 0]))
        alike = np.abs(np.corrcoef(exact.to_numpy().T))
        np.fill_diagonal(alike, 0.0)
        same = {
            (exact.columns[a], exact.columns[b]): alike[a, b] for a, b in np.argwhere(alike > 0.999) if a < b
        }
        assert not same, (symbol, same)


QUIET = {
    "flat": lambda part: part.assign(**dict.fromkeys(PRICES, part["close"].iloc[0])),
    "no volume": lambda part: part.assign(
        **dict.fromkeys({"volume", "quote_volume", "taker_buy_volume"} & {*part}, 0.0)
    ),
    "flat and no volume": lambda part: QUIET["no volume"](QUIET["flat"](part)),
    "one tick": lambda part: part.assign(
        **dict.fromkeys(PRICES, part["close"].iloc[0] + 0.1 * (np.arange(len(part)) % 2))
    ),
}


@pytest.mark.parametrize("kind", QUIET)
def test_every_feature_has_a_value_where_nothing_moves(stretch, kind):
    changed = {}
    for symbol, candles in stretch.items():
        rows = len(candles)
        quiet = QUIET[kind](candles.iloc[rows - 2500 : rows - 500])
        changed[symbol] = pd.concat([candles.iloc[: rows - 2500], quiet, candles.iloc[rows - 500 :]])
    for table in tables_of(Market(changed, "5m")).values():
        assert np.isfinite(table.iloc[LONGEST - 1 :]).all(axis=None)
