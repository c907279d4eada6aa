"""Each of the sixteen features against its definition: plain loops over candles and dated patterns."""

import math
from bisect import bisect_left
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from conftest import by_timeframe

from smc_ml.candles import TIMEFRAMES, resample
from smc_ml.features.config import FeatureConfig
from smc_ml.features.smc import SMC
from smc_ml.features.table import feature_table
from smc_ml.patterns.config import PatternConfig
from smc_ml.patterns.detection import detect_timeframes
from smc_ml.patterns.names import PERIODS

STEP = pd.Timedelta("5min")


class Slow:
    "The candles of one segment as lists, and what is known of its patterns."

    def __init__(self, candles, patterns, config, pattern_config):
        self.config, self.pattern_config = config, pattern_config
        self.opens, self.closes_at = list(candles.index), [time + STEP for time in candles.index]
        self.columns = {name: candles[name].tolist() for name in candles}
        self.high, self.low, self.close = (self.columns[name] for name in ("high", "low", "close"))
        after = patterns["known_at"] > candles.index[0]
        patterns = patterns[after]
        self.by_kind = {kind: of_kind.to_dict("records") for kind, of_kind in patterns.groupby("kind")}
        self.breaks = patterns[patterns["kind"].isin(["break_of_structure", "change_of_character"])]

    # ---- of candles

    def atr(self, row, window=None):
        "Mean of the true ranges of the last candles."
        total, window = 0.0, window or self.config.short_range
        for past in range(row - window + 1, row + 1):
            before = self.close[past - 1]
            total += max(
                self.high[past] - self.low[past], abs(self.high[past] - before), abs(self.low[past] - before)
            )
        return total / window

    def price_momentum(self, row):
        bars = self.config.momentum_bars
        return (self.close[row] - self.close[row - bars]) / self.atr(row) / math.sqrt(bars)

    def volatility_ratio(self, row):
        return self.atr(row) / self.atr(row, self.config.long_range)

    def volume_profile(self, row):
        below = total = 0.0
        for past in range(row - self.config.profile_bars + 1, row + 1):
            typical = (self.high[past] + self.low[past] + self.close[past]) / 3
            total += self.columns["volume"][past]
            below += self.columns["volume"][past] if typical < self.close[row] else 0.0
        return below / total - 0.5 if total else 0.0

    def ways(self, row):
        "From the close up to the highest high and down to the lowest low of the dealing range."
        past = range(row - self.config.range_bars + 1, row + 1)
        return max(self.high[r] for r in past) - self.close[row], self.close[row] - min(
            self.low[r] for r in past
        )

    def risk_reward_ratio(self, row):
        up, down = self.ways(row)
        return math.log((up + 0.1 * self.atr(row)) / (down + 0.1 * self.atr(row)))

    def stop_loss_distance(self, row):
        return 100 * max(min(self.ways(row)), self.atr(row)) / self.close[row]

    def position_size_optimal(self, row):
        size = self.config.risk_per_trade / (self.stop_loss_distance(row) / 100)
        return min(size, self.config.maximum_leverage)

    def daily_trend_strength(self, row):
        "From the days that are complete and have closed by this row's close."
        length, days = TIMEFRAMES[self.config.trend_timeframe], {}
        for past in range(row + 1):
            days.setdefault(self.opens[past].floor(length), []).append(past)
        whole = [rows for rows in days.values() if len(rows) == length // STEP][-self.config.daily_bars :]
        ranges = [max(self.high[r] for r in rows) - min(self.low[r] for r in rows) for rows in whole]
        ends = [self.close[rows[-1]] for rows in whole]
        return (ends[-1] - sum(ends) / len(ends)) / (sum(ranges) / len(ranges))

    def bid_ask_spread(self, row):
        past = range(row - self.config.book_bars + 1, row + 1)
        if "bid" in self.columns:
            bid, ask = self.columns["bid"], self.columns["ask"]
            return sum(1e4 * (ask[r] - bid[r]) / ((ask[r] + bid[r]) / 2) for r in past) / len(past)
        middle = {r: (math.log(self.high[r]) + math.log(self.low[r])) / 2 for r in [past[0] - 1, *past]}
        last = [math.log(self.close[r - 1]) for r in past]
        products = [(c - middle[r - 1]) * (c - middle[r]) for c, r in zip(last, past, strict=True)]
        return 1e4 * math.sqrt(max(4 * sum(products) / len(products), 0.0))

    def order_book_imbalance(self, row):
        total, past = 0.0, range(row - self.config.book_bars + 1, row + 1)
        for r in past:
            if "bid_volume" in self.columns:
                more, less = self.columns["bid_volume"][r], self.columns["ask_volume"][r]
            elif "taker_buy_volume" in self.columns:
                more = self.columns["taker_buy_volume"][r]
                less = self.columns["volume"][r] - more
            else:
                more, less = self.close[r] - self.low[r], self.high[r] - self.close[r]
            total += (more - less) / (more + less) if more + less > 0 else 0.0
        return total / len(past)

    # ---- of patterns

    def known(self, row, kind, living=False):
        "What counts of a kind at the close of a row, in the order of the table."
        now = self.closes_at[row]
        for pattern in self.by_kind.get(kind, ()):
            if pattern["timeframe"] not in self.config.timeframes:
                continue
            if pattern["scale"] == "swing" or pattern["label"] in PERIODS or pattern["known_at"] > now:
                continue
            if living and not pd.isna(pattern["ended_at"]) and pattern["ended_at"] <= now:
                continue
            yield pattern

    def distance(self, row, zone):
        close = self.close[row]
        if close > zone["top"]:
            return close - zone["top"]
        return zone["bottom"] - close if close < zone["bottom"] else 0.0

    def order_block_proximity(self, row):
        "Of two that are equally near, as one within the other, the one that became known later."
        nearest = None
        for zone in self.known(row, "order_block", living=True):
            if nearest is None or self.distance(row, zone) <= self.distance(row, nearest):
                nearest = zone
        if nearest is None:
            return 0.0
        return nearest["direction"] / (1 + self.distance(row, nearest) / self.atr(row))

    def fvg_size(self, row):
        *_, last = [None, *self.known(row, "fair_value_gap", living=True)]
        return last["direction"] * (last["top"] - last["bottom"]) / self.atr(row) if last else 0.0

    def faded(self, row, kind):
        "What is left of each event of a kind at a row."
        for event in self.known(row, kind):
            age = row - bisect_left(self.closes_at, event["known_at"])
            left = 1 - age / self.config.event_bars
            yield event["direction"] * event["strength"] * max(left, 0.0)

    def last_of(self, row, kind):
        return [0.0, *self.faded(row, kind)][-1]

    def choch_strength(self, row):
        return self.last_of(row, "change_of_character")

    def break_of_structure_momentum(self, row):
        return sum(self.faded(row, "break_of_structure"))

    def liquidity_sweep_strength(self, row):
        return self.last_of(row, "liquidity_sweep")

    def trend(self, row, timeframe):
        "Direction of the last internal break of a timeframe that is not too old."
        direction, now = 0.0, self.closes_at[row]
        longest = self.pattern_config.structure_age * TIMEFRAMES[timeframe]
        of_scale = self.breaks["scale"] == "internal"
        of_timeframe = self.breaks[of_scale & (self.breaks["timeframe"] == timeframe)]
        for known_at, side in zip(of_timeframe["known_at"], of_timeframe["direction"], strict=True):
            if known_at <= now:
                direction = float(side) if now - known_at <= longest else 0.0
        return direction

    def m5_m15_confluence(self, row):
        return sum(self.trend(row, name) for name in self.config.confluence_pair) / 2

    def h1_h4_alignment(self, row):
        return sum(self.trend(row, name) for name in self.config.alignment_pair) / 2


def wrong(table: pd.DataFrame, start: int, slow: Slow, rows: dict[str, list[int]]) -> list[str]:
    "Where the table and the slow version differ."
    found = []
    for name, asked in rows.items():
        value: Callable[[int], float] = getattr(slow, name)
        for row in asked:
            here, expected = table[name].iloc[start + row], value(row)
            if not math.isclose(here, expected, rel_tol=1e-9, abs_tol=1e-9):
                found.append(f"{name}, row {row}: {here} instead of {expected}")
    return found


# ---- on rough candles

SHORT = FeatureConfig(
    momentum_bars=4,
    short_range=5,
    long_range=12,
    profile_bars=10,
    range_bars=9,
    event_bars=20,
    book_bars=3,
    daily_bars=4,
    maximum_leverage=0.5,
    timeframes=["5m", "15m"],
    confluence_pair=["5m", "15m"],
    alignment_pair=["30m", "1h"],
    trend_timeframe="1h",
)
PATTERNS = PatternConfig(
    timeframes=["5m", "15m", "30m", "1h"],
    atr_window=5,
    pivot_length=2,
    structure_age=10,
    zone_age=20,
    swing_age=20,
    minimum_gap=0.1,
    minimum_displacement=0.8,
    periods=["day"],
)
FIRST = {  # first row that is exact: what it needs, less one
    "price_momentum": 5,  # five true ranges need six candles
    "volatility_ratio": 12,
    "volume_profile": 9,
    "order_block_proximity": 182,  # 61 candles of 15m: 60 and one that is cut off
    "fvg_size": 182,
    "choch_strength": 112,  # 31 candles of 15m and twenty of fading
    "break_of_structure_momentum": 112,
    "liquidity_sweep_strength": 202,
    "m5_m15_confluence": 92,
    "h1_h4_alignment": 371,  # 31 hours
    "daily_trend_strength": 59,  # four hours and one that is cut off
    "risk_reward_ratio": 8,
    "stop_loss_distance": 8,
    "position_size_optimal": 8,
    "bid_ask_spread": 3,
    "order_book_imbalance": 3,
}
BOOKS = ("bid_ask_spread", "order_book_imbalance")
ROWS, HOLE = 900, 456  # half the candles, then two hours without any, from one full hour to another


def rough(seed: int, books: str = "") -> pd.DataFrame:
    "Candles of all ranges on a coarse grid, so that prices tie, with opens unlike closes and empty volumes."
    random = np.random.default_rng(seed)
    pace = np.exp(random.normal(0, 0.7, ROWS))
    close = 200 + (pace * random.normal(0, 0.5, ROWS)).cumsum()
    opens = np.append(200, close[:-1]) + random.normal(0, 0.5, ROWS) * (random.random(ROWS) < 0.4)
    high = np.maximum(opens, close) + pace * random.exponential(0.4, ROWS)
    low = np.minimum(opens, close) - pace * random.exponential(0.4, ROWS)
    prices = np.round(4 * np.stack([opens, high, low, close])) / 4
    volume = np.where(random.random(ROWS) < 0.15, 0.0, random.exponential(3, ROWS).round(1))
    times = pd.date_range("2024-01-01", periods=ROWS + 24, freq=STEP, tz="UTC", name="open_time", unit="ns")
    table = pd.DataFrame(prices.T, np.delete(times, slice(HOLE, HOLE + 24)), ["open", "high", "low", "close"])
    table = table.rename_axis("open_time").assign(volume=volume)
    if books == "quotes and depth":
        bid, ask = (prices[3] + side * random.exponential(0.05, ROWS) for side in (-1, 1))
        depth = {f"{side}_volume": random.exponential(2, ROWS).round() for side in ("bid", "ask")}
        table = table.assign(bid=bid, ask=ask, **depth)
    return table.assign(taker_buy_volume=volume * random.random(ROWS)) if books == "taker" else table


@pytest.mark.parametrize("books", ["", "quotes and depth", "taker"])
def test_every_feature_is_its_definition_on_rough_candles(books):
    candles = rough(len(books), books)
    frames = {name: resample(candles, "5m", name) for name in PATTERNS.timeframes[1:]}
    patterns = detect_timeframes({"5m": candles} | frames, PATTERNS)
    table = feature_table(candles, patterns, SHORT, PATTERNS, list(SMC.features))
    for start, stop in ((0, HOLE), (HOLE, ROWS)):
        slow = Slow(candles.iloc[start:stop], patterns, SHORT, PATTERNS)
        for name, first in FIRST.items():
            seen = table[name].iloc[start:stop].notna().to_numpy()
            assert not seen[:first].any() and seen[first:].all(), (name, first)
        asked = BOOKS if books else FIRST
        assert not wrong(table, start, slow, {name: range(FIRST[name], stop - start) for name in asked})
    assert set(FIRST) == set(SMC.features) == set(table)


def test_rough_candles_try_every_rule():
    "Living blocks around one price on both sides, gaps one upon the other, ties, and candles without volume."
    candles = rough(0)
    frames = {name: resample(candles, "5m", name) for name in PATTERNS.timeframes[1:]}
    patterns = detect_timeframes({"5m": candles} | frames, PATTERNS)
    slow = Slow(candles.iloc[:HOLE], patterns, SHORT, PATTERNS)
    nested = gaps = 0
    for row in range(182, HOLE):
        blocks = list(slow.known(row, "order_block", living=True))
        around = {zone["direction"] for zone in blocks if not slow.distance(row, zone)}
        nested += len(around) == 2
        gaps += len(list(slow.known(row, "fair_value_gap", living=True))) > 1
    assert nested and gaps > 50, (nested, gaps)
    closes = set(slow.closes_at)
    assert sum(zone["ended_at"] in closes for zone in slow.by_kind["order_block"]) > 20
    typical = (candles["high"] + candles["low"] + candles["close"]) / 3
    assert (typical == candles["close"]).sum() > 5 and (candles["volume"] == 0).sum() > 50
    assert (candles["open"].iloc[1:].to_numpy() != candles["close"].iloc[:-1].to_numpy()).mean() > 0.3


# ---- by hand


def by_hand(**columns) -> float:
    "Nearness of order blocks to a price of 200 with an ATR of 2, known at the close before the last two."
    times = pd.date_range("2024-01-01", periods=ROWS, freq=STEP, tz="UTC", name="open_time", unit="ns")
    calm = {"open": 200.0, "high": 201.0, "low": 199.0, "close": 200.0, "volume": 1.0}
    candles = pd.DataFrame(calm, times)
    count = len(columns["top"])
    fixed = {"kind": "order_block", "timeframe": "5m", "scale": "internal", "label": "", "strength": 1.0}
    zones = pd.DataFrame({**fixed, "known_at": times[-2], "ended_at": pd.NaT, **columns}, index=range(count))
    zones["ended_at"] = pd.to_datetime(zones["ended_at"], utc=True)
    others = zones.iloc[:1].assign(timeframe=[["15m", "30m", "1h"]]).explode("timeframe")
    patterns = pd.concat([zones, others.assign(kind="swing_high")], ignore_index=True)
    patterns = patterns.sort_values("known_at", kind="stable", ignore_index=True)
    return feature_table(candles, patterns, SHORT, PATTERNS, ["order_block_proximity"]).iloc[-1, 0]


def test_the_zone_that_became_known_last_wins_where_two_are_equally_near():
    last = pd.date_range("2024-01-01", periods=ROWS + 1, freq=STEP, tz="UTC")
    wide, narrow = {"top": [210.0], "bottom": [190.0]}, {"top": [201.0], "bottom": [199.0]}
    assert by_hand(direction=[1], **wide) == 1.0
    nested = {name: wide[name] + narrow[name] for name in wide}
    assert by_hand(direction=[1, -1], **nested) == -1.0
    assert by_hand(direction=[-1, 1], **nested) == 1.0  # not the narrower, nor a side
    assert by_hand(direction=[1, -1], known_at=last[[-3, -4]], **nested) == 1.0
    apart = {"top": [210.0, 198.0], "bottom": [204.0, 190.0]}  # two ATR above, one ATR below
    assert by_hand(direction=[-1, 1], **apart) == by_hand(direction=[1, -1], **apart) * -1 == 0.5
    same = {"top": [210.0, 196.0], "bottom": [204.0, 190.0]}  # two ATR either way
    assert by_hand(direction=[-1, 1], **same) == pytest.approx(1 / 3)


def test_a_zone_counts_up_to_the_close_before_the_one_that_ends_it():
    last = pd.date_range("2024-01-01", periods=ROWS + 1, freq=STEP, tz="UTC")
    zone = {"top": [210.0], "bottom": [190.0], "direction": [1]}
    assert by_hand(ended_at=[last[-1] + STEP], **zone) == 1.0  # after the last close
    assert by_hand(ended_at=[last[-1]], **zone) == 0.0  # at the last close
    assert by_hand(ended_at=[last[-1] + pd.Timedelta("1ns")], **zone) == 1.0
    assert by_hand(known_at=[last[-1]], **zone) == 1.0  # known at the last close
    assert by_hand(known_at=[last[-1] + STEP], **zone) == 0.0


# ---- on real candles


def test_every_feature_is_its_definition_on_real_candles(bitcoin):
    "On first rows and on rows drawn at random; the structure of four hours needs 6,816 rows."
    candles, config, pattern_config = bitcoin.iloc[:8500], FeatureConfig(), PatternConfig()
    patterns = detect_timeframes(by_timeframe(candles))
    table = feature_table(candles, patterns, config, pattern_config, list(SMC.features))
    slow, random = Slow(candles, patterns, config, pattern_config), np.random.default_rng(0)
    first = {
        "price_momentum": 14,
        "volatility_ratio": 100,
        "volume_profile": 287,
        "order_block_proximity": 1205,
        "fvg_size": 1205,
        "choch_strength": 569,
        "break_of_structure_momentum": 569,
        "liquidity_sweep_strength": 1349,
        "m5_m15_confluence": 425,
        "h1_h4_alignment": 6815,
        "daily_trend_strength": 3167,
        "risk_reward_ratio": 143,
        "stop_loss_distance": 143,
        "position_size_optimal": 143,
        "bid_ask_spread": 12,
        "order_book_imbalance": 12,
    }
    assert {name: int(table[name].notna().to_numpy().argmax()) for name in table} == first
    assert all(table[name].iloc[row:].notna().all() for name, row in first.items())
    rows = {name: [row, *random.integers(row, len(candles), 40)] for name, row in first.items()}
    assert not wrong(table, 0, slow, rows)
