"""The popular readings: what a chart draws, told again in plain loops; no look ahead, batch equals stream."""

from math import nan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_feature_streams import Case
from test_patterns_on_odd_candles import FIVE_MINUTES, SMALL, odd_candles, thorough

from smc_ml.candles import TIMEFRAMES, Market, resample
from smc_ml.causality import assert_blind_to_the_future, assert_causal_events
from smc_ml.config import ConfigError
from smc_ml.evaluation.trials import Trial, trial_id
from smc_ml.labels.outcomes import label_patterns
from smc_ml.patterns.config import LEG_WARM_UP, PRESETS, PatternConfig
from smc_ml.patterns.detection import detect_market, detect_patterns
from smc_ml.patterns.saved_streams import restore_stream, save_stream
from smc_ml.patterns.streaming import PatternStream, update_table
from smc_ml.settings import check_settings

BULL, BEAR = 1, -1
QUARTER = TIMEFRAMES["15m"]


class Chart:
    """What the chart shows at each close, from the definitions: slow, and with its whole past at hand.

    A pattern is a tuple (kind, direction, scale, formed, known, level, top, bottom); `ends` has the row at
    which a zone went.
    """

    def __init__(self, candles: pd.DataFrame, by_close: bool, quirks: bool, wild_by: str):
        self.open, self.high, self.low, self.close = candles[["open", "high", "low", "close"]].to_numpy().T
        self.by_close, self.quirks, self.found, self.ends = by_close, quirks, [], {}
        before = np.r_[nan, self.close[:-1]]
        ranges = np.fmax(self.high, before) - np.fmin(self.low, before)
        self.atr = np.full(len(ranges), nan)
        for row in range(199, len(ranges)):
            mean = np.add.accumulate(ranges[:200])[-1] / 200
            self.atr[row] = mean if row == 199 else (self.atr[row - 1] * 199 + ranges[row]) / 200
        measure = self.atr
        if wild_by == "range":
            measure = np.add.accumulate(ranges) / np.r_[nan, np.arange(1, len(ranges))]
        wild = self.high - self.low >= 2 * measure
        self.block_high = np.where(wild, self.low, self.high)
        self.block_low = np.where(wild, self.high, self.low)

    def draw(self) -> "Chart":
        swing, internal = self.legs(50), self.legs(5)
        for scale, legs in (("internal", internal), ("swing", swing)):
            for known, (side, at, level) in legs.items():
                kind, direction = ("swing_high", BEAR) if side > 0 else ("swing_low", BULL)
                self.found.append((kind, direction, scale, at, known, level, level, level))
        broken = self.breaks(internal, swing), self.breaks(swing, None)
        for scale, breaks in zip(("internal", "swing"), broken, strict=True):
            self.found += [
                (kind, side, scale, at, row, *[level] * 3) for row, side, kind, at, level in breaks
            ]
            self.blocks(scale, breaks)
        self.equals()
        self.gaps()
        return self

    def legs(self, length: int) -> dict[int, tuple[int, int, float]]:
        "Row at which a swing appears -> side, row and level."
        found, last = {}, 1
        for row in range(length, len(self.close)):
            at, later = row - length, slice(row - length + 1, row + 1)
            up, down = self.high[at] > self.high[later].max(), self.low[at] < self.low[later].min()
            side = 1 if up else -1 if down else last
            if side != last:
                found[row], last = (side, at, (self.high if up else self.low)[at]), side
        return found

    def breaks(self, legs: dict, avoided: dict | None) -> list[tuple]:
        "Row, side, kind, row and level of the swing: the first cross of each swing that is not kept back."
        found, trend, last, done, large = [], 0, {}, set(), {}
        for row in range(len(self.close)):
            before = dict(last)
            if avoided and row in avoided:
                large[avoided[row][0]] = avoided[row][2]
            if row in legs:
                last[legs[row][0]] = legs[row][1:]
            for side in (1, -1):
                if side not in before or (side, last[side]) in done:
                    continue
                at, level = last[side]
                over = side * (self.close[row] - level) > 0
                was = side * (self.close[row - 1] - before[side][1]) > 0
                kept_back = avoided is not None and large.get(side, level) == level
                if not over or was or kept_back:
                    continue
                kind = "change_of_character" if trend == -side else "break_of_structure"
                found.append((row, side, kind, at, level))
                done.add((side, last[side]))
                trend = side
        return found

    def blocks(self, scale: str, breaks: list[tuple]) -> None:
        held, due = [], {}
        for row, side, _, formed, _ in breaks:
            extreme = side * (self.block_low if side > 0 else self.block_high)[formed:row]
            at = formed + int(np.argmin(extreme))
            high, low = self.block_high[at], self.block_low[at]
            zone = (high + low) / 2, max(high, low), min(high, low), high, low
            due.setdefault(row, []).append(("order_block", side, scale, at, row, *zone))
        over, under = (self.close, self.close) if self.by_close else (self.high, self.low)
        upper, lower = (8, 9) if self.quirks else (6, 7)
        for row in range(len(self.close)):
            for block in due.get(row, ()):
                held = [block, *held][:100]
                self.found.append(block[:8])
            gone = [under[row] < b[lower] if b[1] > 0 else over[row] > b[upper] for b in held]
            held = self.left(held, row, gone)

    def left(self, held: list[tuple], row: int, gone: list[bool]) -> list[tuple]:
        "What is left of zones, newest first; with the chart's quirk the one after one that goes is spared."
        kept, spared = [], False
        for zone, beyond in zip(held, gone, strict=True):
            goes = beyond and not spared
            spared = goes and self.quirks
            if goes:
                self.ends[zone[:8]] = row
            else:
                kept.append(zone)
        return kept

    def equals(self) -> None:
        last = {}
        for row, (side, formed, level) in self.legs(3).items():
            if side in last and abs(last[side][1] - level) < 0.1 * self.atr[row]:
                kind = ("equal_highs", BEAR) if side > 0 else ("equal_lows", BULL)
                at, other = last[side]
                self.found.append((*kind, "", at, row, level, max(level, other), min(level, other)))
            last[side] = formed, level

    def gaps(self) -> None:
        held, total, bodies = [], 0.0, (self.close - self.open) / self.open
        edge = 7 if self.quirks else 6
        for row in range(1, len(self.close)):
            gone = [self.low[row] < g[7] if g[1] > 0 else self.high[row] > g[edge] for g in held]
            held = self.left(held, row, gone)
            total, gap, body = total + abs(bodies[row - 1]), None, bodies[row - 1]
            if row < 2 or abs(body) <= 2 * total / row:
                continue
            first_high, first_low = self.high[row - 2], self.low[row - 2]
            high, low, middle = self.high[row], self.low[row], self.close[row - 1]
            if body > 0 and min(low, middle) > first_high:
                gap = (BULL, "", row - 1, row, (low + first_high) / 2, low, first_high)
            elif body < 0 and max(high, middle) < first_low:
                gap = (BEAR, "", row - 1, row, (high + first_low) / 2, first_low, high)
            if gap:
                held.insert(0, ("fair_value_gap", *gap))
                self.found.append(held[0])


def drawn(candles: pd.DataFrame, config: PatternConfig, kinds: set[str]) -> tuple[list, dict]:
    "Our patterns in the same form; blocks that gave way to newer ones have no end, as on the chart."
    patterns = detect_patterns(candles, config, "15m")
    patterns = patterns[patterns["kind"].isin(kinds)]
    row, ended = candles.index.get_indexer, patterns["ended_at"].where(patterns["ended_how"] != "replaced")
    columns = [patterns[name] for name in ("level", "top", "bottom")]
    formed, known = row(patterns["formed_at"]), row(patterns["known_at"] - QUARTER)
    told = [patterns[name].astype(str) for name in ("kind", "scale")]
    found = list(zip(told[0], patterns["direction"], told[1], formed, known, *columns, strict=True))
    ends = dict(zip(found, row(ended - QUARTER), strict=True))
    zones = {"order_block", "fair_value_gap"}
    return found, {zone: end for zone, end in ends.items() if end >= 0 and zone[0] in zones}


def agrees(candles: pd.DataFrame, quirks: bool, by_close: bool = False, wild_by: str = "atr") -> Chart:
    "Assert that the preset draws the chart: every pattern at its close, and every end."
    chart = Chart(candles, by_close, quirks, wild_by).draw()
    config = PatternConfig.preset(
        "tradingview",
        chart_quirks=quirks,
        block_end="close" if by_close else "wick",
        wild_by=wild_by,
        weekends_closed=True,
        maximum_hole=10**6,
        periods=(),
    )
    found, ends = drawn(candles, config, {pattern[0] for pattern in chart.found})
    assert sorted(found) == sorted(chart.found)
    assert ends == chart.ends
    return chart


@pytest.mark.parametrize(
    ("quirks", "by_close", "wild_by"), [(True, False, "atr"), (False, True, "range")], ids=["wick", "close"]
)
def test_the_preset_draws_what_the_chart_draws(bitcoin, quirks, by_close, wild_by):
    chart = agrees(resample(bitcoin.iloc[:12_000], "5m", "15m"), quirks, by_close, wild_by)
    counted = pd.Series([pattern[0] for pattern in chart.found]).value_counts()
    assert len(counted) == 8 and counted.min() >= 10 and len(chart.ends) > 300


@pytest.mark.slow
@pytest.mark.parametrize("quirks", [True, False])
@pytest.mark.parametrize("name", ["bitcoin", "euro"])
def test_the_preset_draws_what_the_chart_draws_for_a_year(name, quirks, request):
    candles = request.getfixturevalue(name)
    agrees(candles if name == "euro" else resample(candles, "5m", "15m"), quirks)


SHORT = SMALL | {"leg_length": 2, "swing_leg_length": 5, "equal_leg_length": 1, "wilder_window": 6}
SHORT = {name: SHORT[name] for name in SHORT if name not in ("minimum_displacement", "minimum_gap")}
charts = st.builds(
    lambda **chosen: PatternConfig.preset("tradingview", **SHORT | chosen),
    chart_quirks=st.booleans(),
    distinct_scales=st.booleans(),
    wick_filter=st.booleans(),
    block_end=st.sampled_from(["wick", "close", "middle"]),
    birth_counts=st.booleans(),
    blocks_kept=st.sampled_from([0, 2]),
    wild_by=st.sampled_from(["atr", "range"]),
    gap_body=st.sampled_from([0.0, 1.0]),
    zones_expire=st.booleans(),
)


@given(odd_candles(), charts)
@settings(thorough, max_examples=12)
def test_odd_candles_are_read_causally_and_alike_in_batch_and_stream(candles, config):
    def detect(c):
        return detect_patterns(c, config, "5m", validate=False)

    assert_causal_events(detect, candles, FIVE_MINUTES, cuts=5, each=1)
    assert_blind_to_the_future(detect, candles, FIVE_MINUTES, cuts=2, ahead=30)
    patterns = detect_patterns(candles, config, "5m")
    streamed = update_table(PatternStream(config, "5m").feed(candles), config, "5m")
    pd.testing.assert_frame_equal(streamed, patterns, check_exact=True)
    assert ((patterns["bottom"] <= patterns["level"]) & (patterns["level"] <= patterns["top"])).all()
    assert (patterns["formed_at"] < patterns["known_at"]).all()
    assert not (patterns["ended_at"] < patterns["known_at"]).any()


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"none"}))
def test_a_preset_is_causal_and_streams_and_goes_on_from_a_file(euro, name, tmp_path):
    "On real candles with weekends and holidays, which are holes."
    candles, config = euro.iloc[:4000], PatternConfig.preset(name, weekends_closed=True)
    whole = detect_patterns(candles, config)
    stream, half = PatternStream(config, "15m"), 1700
    updates = stream.feed(candles.iloc[:half])
    save_stream(stream, tmp_path / "a.stream")
    updates += restore_stream(tmp_path / "a.stream", config, "15m").feed(candles.iloc[half:])
    pd.testing.assert_frame_equal(update_table(updates, config), whole, check_exact=True)

    def detect(c):
        return detect_patterns(c, config, "15m", validate=False)

    assert_causal_events(detect, candles, QUARTER, cuts=10, first=300)
    assert_blind_to_the_future(detect, candles.iloc[:2000], QUARTER, cuts=5, first=300, ahead=300)
    holes = candles.index[1:][np.diff(candles.index.asi8) > 4 * QUARTER.value]
    across = [(whole["formed_at"] < hole) & (whole["known_at"] > hole) for hole in holes]
    assert len(across) >= 8 and sum(map(np.count_nonzero, across)) > 0  # weekends are no holes
    strict = detect_patterns(candles, PatternConfig.preset(name))
    assert not any(((strict["formed_at"] < hole) & (strict["known_at"] > hole)).any() for hole in holes)


def test_a_peek_of_the_chart_is_caught(bitcoin):
    candles, config = bitcoin.iloc[:3000], PatternConfig.preset("tradingview")

    def peek(c):
        patterns = detect_patterns(c, config, validate=False)
        early = patterns["known_at"].where(patterns["kind"] != "order_block", patterns["formed_at"])
        return patterns.assign(known_at=early).sort_values("known_at", kind="stable", ignore_index=True)

    with pytest.raises(AssertionError):
        assert_causal_events(peek, candles, FIVE_MINUTES, cuts=10, first=300)


def test_a_chart_that_begins_later_agrees_after_the_warm_up_but_for_gaps(bitcoin):
    candles, config = resample(bitcoin, "5m", "15m").iloc[:9000], PatternConfig.preset("tradingview")
    kinds = ["swing_high", "swing_low", "break_of_structure", "change_of_character", "order_block"]
    told = ["kind", "direction", "scale", "formed_at", "known_at", "top", "bottom", "level"]
    whole = detect_patterns(candles, config)
    for start in (1000, 4000):
        later = detect_patterns(candles.iloc[start:], config)
        warm = candles.index[start + LEG_WARM_UP]
        ours, theirs = (
            table[table["kind"].isin([*kinds, "equal_highs", "equal_lows"]) & (table["known_at"] > warm)]
            for table in (later, whole)
        )
        assert ours[told].to_numpy().tolist() == theirs[told].to_numpy().tolist() and len(ours) > 500


@pytest.mark.slow
def test_labels_and_features_follow_the_preset_live_as_in_the_batch(bitcoin):
    "One path: the patterns that are labelled are those that the stream of features reads."
    config = PatternConfig.preset("tradingview")
    case = Case(Market({"BTCUSDT": bitcoin[:9000]}, "5m"), config)
    patterns = detect_market(case.market, config)["BTCUSDT"]
    labels = label_patterns(case.candles, patterns, "BTCUSDT", pattern_config=config)
    assert len(labels) > 100 and labels["realised_r"].notna().all()
    case.check(case.fed(case.opened(8000), 8000, 60), 8000)


def test_the_oldest_block_of_a_scale_gives_way_where_only_so_many_are_kept(bitcoin):
    candles = bitcoin.iloc[:4000]
    config = PatternConfig.preset("tradingview", blocks_kept=3, periods=())
    blocks = detect_patterns(candles, config).query("kind == 'order_block'")
    ended = blocks["ended_at"].fillna(candles.index[-1] + pd.Timedelta("1D"))
    for _, of_scale in blocks.groupby("scale", observed=True):
        assert (of_scale["ended_how"] == "replaced").sum() >= 5
        for known in of_scale["known_at"]:
            alive = (of_scale["known_at"] <= known) & (ended[of_scale.index] > known)
            assert alive.sum() <= 3
        for row in of_scale[of_scale["ended_how"] == "replaced"].itertuples():
            older = of_scale[(of_scale["known_at"] < row.known_at) & (ended[of_scale.index] > row.ended_at)]
            assert not len(older)


def test_a_preset_is_one_word_of_the_settings(tmp_path):
    text = (Path(__file__).resolve().parents[1] / "params.yaml").read_text()
    assert text.count("preset: none") == 1
    path = tmp_path / "params.yaml"
    for name in PRESETS:
        path.write_text(text.replace("preset: none", f"preset: {name}"))
        assert check_settings(path)["patterns"] == PatternConfig.preset(name)
    path.write_text(text.replace("preset: none", "preset: luxury"))
    with pytest.raises(
        ConfigError, match="patterns.preset: 'luxury' is none of none, tradingview, ict, smart"
    ):
        check_settings(path)
    path.write_text(
        text.replace("preset: none", "preset: ict").replace("block_end: close", "block_end: wick")
    )
    changed = check_settings(path)["patterns"]
    assert (changed.block_end, changed.minimum_gap, PRESETS["ict"]["block_end"]) == ("wick", 0.0, "middle")


def test_a_trial_with_a_preset_is_another_trial():
    own, preset = PatternConfig(preset="none"), PatternConfig(preset="ict")
    names = [
        trial_id(Trial("train", "model", {"patterns": config})) for config in (own, preset, PatternConfig())
    ]
    assert names[0] == names[2] != names[1]


def test_a_hole_begins_a_chart_of_its_own(bitcoin):
    "Half a day is taken out: what is found is what two charts show, and nothing lives on across the hole."
    candles = resample(bitcoin.iloc[:9000], "5m", "15m")
    candles = candles.drop(candles.index[1400:1450])
    charts = [Chart(part, False, False, "atr").draw() for part in (candles.iloc[:1400], candles.iloc[1400:])]
    at, second = 1400, charts[1]
    moved = {p: (*p[:3], p[3] + at, p[4] + at, *p[5:]) for p in second.found}
    later, ends = list(moved.values()), {moved[p]: row + at for p, row in second.ends.items()}
    ends |= charts[0].ends
    found, ours = drawn(candles, PatternConfig.preset("tradingview", periods=()), {p[0] for p in later})
    assert sorted(found) == sorted(charts[0].found + later)
    interrupted = {zone for zone in ours if ours[zone] == at and zone[4] < at}
    assert {zone: row for zone, row in ours.items() if zone not in interrupted} == ends
    zones = [zone for zone in charts[0].found if zone[0] in ("order_block", "fair_value_gap")]
    assert interrupted == {zone for zone in zones if zone not in charts[0].ends} and len(interrupted) > 10
