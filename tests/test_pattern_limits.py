"""Where patterns are forgotten, to the candle: at its age limit a thing counts, one candle later no more.

Each limit is met twice, exactly and missed by one candle; whatever has a side is told upside down as well.
"""

import numpy as np
import pandas as pd
import pytest

from smc_ml.labels.outcomes import _confluence
from smc_ml.patterns.config import PatternConfig
from smc_ml.patterns.confluence import confluence_at, pattern_confluence, trend_at
from smc_ml.patterns.events import (
    CANDLE_RECORD,
    ENDED,
    EVENT_RECORD,
    TOUCHED,
    held_state,
    prepare,
    run,
    run_with_life_events,
)
from smc_ml.patterns.levels import DEALING_ROOM, DEALING_STATE, LEVEL_STATE, dealing_ranges, level_room
from smc_ml.patterns.levels import support_resistance as clusters
from smc_ml.patterns.liquidity import (
    CANDIDATE,
    DECIDED,
    DECIDED_ROOM,
    LIQUIDITY_TARGET_RECORD,
    candidate_room,
    equal_levels,
    liquidity_events,
    target_room,
)
from smc_ml.patterns.names import ENDED_HOW, INTERNAL, KINDS, LABELS, SWING
from smc_ml.patterns.structure import structure_breaks, structure_state, trend_state
from smc_ml.patterns.swings import fractal_swings, swing_state, zigzag_state, zigzag_swings
from smc_ml.patterns.volume_profile import PROFILE_STATE, profile_room, volume_profiles
from smc_ml.patterns.zones import run_zones, zone_traits

STEP = 300_000_000_000
AGE = 9
WINDOW = 2
SIDES = pytest.mark.parametrize("side", [1, -1])
AROUND = pytest.mark.parametrize("late", [0, 1])  # candles beyond the limit
QUIET = (100.0, 100.5, 99.0, 99.75)


def quiet_candles(rows: int, side: int = 1, **changed: tuple) -> np.ndarray:
    "Equal candles but for those named `r<row>`, given as open, high, low and close; side -1: upside down."
    candles = np.zeros(rows, CANDLE_RECORD)
    prices = np.array([changed.get(f"r{row}", QUIET) for row in range(rows)])
    if side < 0:
        prices = 200 - prices[:, [0, 2, 1, 3]]
    for number, name in enumerate(("open", "high", "low", "close")):
        candles[name] = prices[:, number]
    candles["volume"], candles["time"] = 7.0 + np.arange(rows), np.arange(rows) * STEP
    prepare(candles, -1, 0, rows, WINDOW, 4 * STEP, False)
    return candles


def event(kind: str, side: int, formed: int, known: int, level: float, scale: int = INTERNAL) -> np.void:
    "One event; side +1: a high or what lies above, -1: its mirror image."
    made = np.zeros(1, EVENT_RECORD)
    price = level if side > 0 else 200 - level
    made["kind"], made["direction"], made["scale"] = KINDS.index(kind), -side, scale
    made["formed"], made["formed_time"], made["known"] = formed, formed * STEP, known
    made["top"] = made["bottom"] = made["level"] = price
    return made


def swing(side: int, formed: int, level: float, scale: int = INTERNAL) -> np.void:
    return event("swing_high" if side > 0 else "swing_low", side, formed, formed + 1, level, scale)


def names(events: np.ndarray) -> list[str]:
    return [KINDS[kind] for kind in events["kind"]]


def ends(life_events: np.ndarray) -> list[tuple[int, int, str]]:
    "Number, row and how of each end."
    return [(int(e["number"]), int(e["row"]), ENDED_HOW[e["how"]]) for e in life_events if e["what"] == ENDED]


# Candles


def test_the_atr_is_known_at_the_first_row_that_has_a_window_of_true_ranges():
    candles = quiet_candles(8, r3=(100.0, 104.0, 97.0, 99.0))
    assert np.isnan(candles["range"][:WINDOW]).all()
    assert candles["range"][WINDOW:].tolist() == [1.5, 4.25, 4.25, 1.5, 1.5, 1.5]
    for late in (0, 1):
        holed = candles.copy()
        holed["time"][4:] += (3 + late) * STEP
        prepare(holed, -1, 0, 8, WINDOW, 4 * STEP, False)
        assert (holed["first"][4] == 0) != late
        assert np.isnan(holed["range"][4 : 4 + WINDOW]).all() == bool(late) and holed["range"][6] > 0


# Swings


@SIDES
@AROUND
def test_a_swing_is_compared_with_the_last_one_of_its_side_until_that_is_too_old(side, late):
    top = (100.0, 103.0, 99.0, 99.5)
    candles = quiet_candles(30, side, r5=top, **{f"r{5 + AGE + late}": top})
    found = run(fractal_swings, candles, 1, AGE, swing_state())
    found = found[found["direction"] == -side]
    assert found["formed"].tolist() == [5, 5 + AGE + late] and found["known"].tolist() == [6, 6 + AGE + late]
    assert [LABELS[label] for label in found["label"]] == ["", "" if late else "EQH" if side > 0 else "EQL"]


def peaks(rows: int, side: int, *at: int) -> np.ndarray:
    "Candles that rise by ten to the close of each of these rows and fall back in the next."
    up = {f"r{row}": (100.0, 110.0, 99.0, 109.5) for row in at}
    down = {f"r{row + 1}": (109.5, 109.75, 99.0, 99.5) for row in at}
    return quiet_candles(rows, side, **up, **down)


@SIDES
@AROUND
def test_a_swing_of_the_zigzag_is_compared_until_the_last_one_is_too_old(side, late):
    candles = peaks(40, side, 5, 5 + AGE + late)
    found = run(zigzag_swings, candles, 1.0, AGE, zigzag_state())
    found = found[(found["direction"] == -side) & (found["level"] == 100 + 10 * side)]
    assert found["formed"].tolist() == [5, 5 + AGE + late]
    assert [LABELS[label] for label in found["label"]] == ["", "" if late else "EQH" if side > 0 else "EQL"]


@SIDES
@AROUND
def test_a_leg_without_a_new_extreme_is_forgotten(side, late):
    turn = 5 + AGE + late
    above = {f"r{row}": (109.0, 109.5, 108.75, 109.0) for row in range(6, turn)}
    up, fall = (100.0, 110.0, 99.0, 109.5), (109.0, 109.25, 99.0, 99.5)
    candles = quiet_candles(turn + 3, side, r5=up, **above, **{f"r{turn}": fall})
    found = run(zigzag_swings, candles, 1.6, AGE, zigzag_state())
    tops = found[(found["direction"] == -side) & (found["formed"] == 5)]
    assert tops["known"].tolist() == ([] if late else [turn])


@SIDES
def test_the_candle_of_the_extreme_does_not_turn_the_leg_itself(side):
    both = (109.0, 120.0, 98.0, 98.5)  # a new high, and a close far below it
    up = (100.0, 110.0, 99.0, 109.5)
    candles = quiet_candles(12, side, r5=up, r6=both, r7=(98.5, 99.0, 90.0, 90.5))
    found = run(zigzag_swings, candles, 0.8, 60, zigzag_state())
    tops = found[(found["direction"] == -side) & (found["formed"] == 6)]
    assert tops["known"].tolist() == [7] and tops["level"].tolist() == [100 + 20 * side]
    later = run(zigzag_swings, quiet_candles(12, side, r5=up, r6=both), 30.0, 60, zigzag_state())
    assert 6 not in later["known"]


# Structure


@SIDES
@AROUND
def test_a_swing_can_be_broken_until_it_is_too_old(side, late):
    candles = quiet_candles(30, side, **{f"r{5 + AGE + late}": (100.0, 104.0, 99.0, 103.0)})
    broken = run(structure_breaks, candles, swing(side, 5, 102.0), False, 1.0, AGE, structure_state())
    assert broken["known"].tolist() == ([] if late else [5 + AGE])


@SIDES
@AROUND
def test_a_trend_is_forgotten_after_its_last_break(side, late):
    turn = 8 + AGE + late
    candles = quiet_candles(
        30, side, r8=(100.0, 104.0, 99.0, 103.0), **{f"r{turn}": (100.0, 100.5, 94.0, 95.0)}
    )
    swings = np.concatenate([swing(side, 5, 102.0), swing(-side, turn - 3, 200 - 97.0)])
    broken = run(structure_breaks, candles, swings, False, 99.0, AGE, structure_state())
    assert broken["known"].tolist() == [8, turn]
    assert names(broken)[1] == ("break_of_structure" if late else "change_of_character")
    state = trend_state(candles, broken[:1], AGE)
    assert np.flatnonzero(state).tolist() == list(range(8, 8 + AGE + 1)) and state[8] == side


# Liquidity


@SIDES
@AROUND
def test_a_swing_can_be_equalled_until_it_is_too_old(side, late):
    candles, second = quiet_candles(30, side), 4 + AGE + late
    swings = np.concatenate(
        [swing(side, 5, 103.0), event(names(swing(side, 0, 1))[0], side, 8, second + 1, 103.0)]
    )
    memory = np.zeros(candidate_room(AGE), CANDIDATE), held_state()
    pools = run(equal_levels, candles, swings, 0.1, AGE, *memory)
    assert pools["known"].tolist() == ([] if late else [5 + AGE])
    assert pools["formed"].tolist() == ([] if late else [5])


def targets_story(candles: np.ndarray, targets: np.ndarray, within: int = 1, pool_age: int = AGE):
    memory = np.zeros(target_room(AGE, pool_age), LIQUIDITY_TARGET_RECORD), np.zeros(DECIDED_ROOM, DECIDED)
    return run_with_life_events(
        liquidity_events, candles, targets, within, AGE, pool_age, *memory, held_state()
    )


@SIDES
def test_liquidity_expires_at_its_age_and_is_taken_until_the_candle_before(side):
    taken = (100.0, 104.0, 99.0, 99.5)
    swings, pool = (
        swing(side, 5, 102.0),
        event("equal_highs" if side > 0 else "equal_lows", side, 2, 6, 102.0),
    )
    for targets, expiry in ((swings, 5 + AGE), (pool, 6 + AGE + 3)):
        late = quiet_candles(30, side, **{f"r{expiry + 1}": taken})
        found, happened = targets_story(late, targets, pool_age=AGE + 3)
        assert ends(happened) == [(0, expiry, "expired")] and not len(found)
        for row in (expiry - 1, expiry):
            found, happened = targets_story(
                quiet_candles(30, side, **{f"r{row}": taken}), targets, 1, AGE + 3
            )
            assert ends(happened) == [(0, row, "swept")] and names(found) == ["liquidity_sweep"]


@SIDES
@pytest.mark.parametrize("within", [1, 2, 3])
def test_the_last_of_the_closes_that_decide_tells_a_sweep_from_a_run(side, within):
    beyond, back = (103.0, 104.0, 102.5, 103.0), (103.0, 103.5, 99.0, 99.5)
    outside = {f"r{8 + number}": beyond for number in range(within)}
    last = f"r{8 + within - 1}"
    _, happened = targets_story(quiet_candles(20, side, **outside), swing(side, 5, 102.0), within)
    assert ends(happened) == [(0, 8 + within - 1, "run")]
    _, happened = targets_story(
        quiet_candles(20, side, **outside | {last: back}), swing(side, 5, 102.0), within
    )
    assert ends(happened) == [(0, 8 + within - 1, "swept")]
    assert [int(e["row"]) for e in happened if e["what"] == TOUCHED] == [8]


# Levels


@AROUND
def test_a_cluster_is_joined_until_it_is_too_old(late):
    candles = quiet_candles(30)
    swings = np.concatenate([swing(1, 4, 103.0), swing(1, 4 + AGE + late, 103.0)])
    out, memory = np.zeros(4, EVENT_RECORD), np.zeros(level_room(AGE), LEVEL_STATE)
    count = clusters(candles, -1, swings, 0.5, 2, AGE, memory, out)
    assert out["known"][:count].tolist() == ([] if late else [5 + AGE])


@SIDES
@AROUND
def test_a_dealing_range_lasts_while_its_older_swing_is_remembered(side, late):
    candles, known = quiet_candles(30, side), 5 + AGE + late
    second = event("swing_low" if side > 0 else "swing_high", -side, known - 2, known, 110.0, SWING)
    swings = np.concatenate([swing(side, 5, 110.0, SWING), second])
    out, memory = np.zeros(4, EVENT_RECORD), np.zeros(DEALING_ROOM, DEALING_STATE)
    count = dealing_ranges(candles, -1, swings, 0.62, 0.79, AGE, memory, out)
    assert names(out[:count]) == ([] if late else ["dealing_range", "optimal_trade_entry"])


def test_a_profile_needs_its_whole_window_and_comes_at_its_hours():
    candles = quiet_candles(40)
    candles["time"][20:] += 9 * STEP
    prepare(candles, -1, 0, 40, WINDOW, 4 * STEP, False)
    state = np.zeros(8, PROFILE_STATE)
    found = run(volume_profiles, candles, 5, 1, STEP, 0.7, state, room=profile_room(8) * 40)
    known = np.unique(found["known"][found["kind"] == KINDS.index("value_area")])
    assert known.tolist() == [*range(4, 20), *range(24, 40)]
    assert (found["formed"] == found["known"] - 4).all()
    found = run(volume_profiles, quiet_candles(40), 5, 6, STEP, 0.7, state, room=profile_room(8) * 40)
    assert np.unique(found["known"]).tolist() == [5, 11, 17, 23, 29, 35]


# Zones


def zone_story(kind: str, side: int, known: int, candles: np.ndarray):
    "What a zone from 90 to 92 (side -1: its mirror image) turns into, and its life; side +1: it lies below."
    zone = event(kind, -side, known - 1, known, 0.0)
    zone["bottom"], zone["top"] = (90.0, 92.0) if side > 0 else (108.0, 110.0)
    zone["level"], zone["direction"] = (zone["top"] + zone["bottom"]) / 2, side
    return run_zones(candles, zone, zone_traits(), AGE, first_number=1)


@SIDES
@pytest.mark.parametrize("kind", ["order_block", "fair_value_gap", "support_resistance", "high_volume_node"])
@pytest.mark.parametrize("touched", [False, True])
def test_a_zone_expires_at_its_age_whether_it_is_touched_or_not(side, kind, touched):
    near = {f"r{row}": (92.5, 93.0, 91.5, 92.5) for row in range(4, 30)} if touched else {}
    _, happened = zone_story(kind, side, 3, quiet_candles(30, side, **near))
    assert ends(happened) == [(0, 3 + AGE, "expired")]


@SIDES
@pytest.mark.parametrize(("kind", "becomes"), [("order_block", "breaker_block")])
@pytest.mark.parametrize("early", [1, 0, -1])
def test_a_zone_can_be_broken_until_it_expires(side, kind, becomes, early):
    row = 3 + AGE - early
    candles = quiet_candles(40, side, **{f"r{row}": (92.0, 92.5, 88.0, 88.5)})
    turned, happened = zone_story(kind, side, 3, candles)
    assert ends(happened)[0] == ((0, 3 + AGE, "expired") if early < 0 else (0, row, "broken"))
    assert names(turned) == ([] if early < 0 else [becomes])


@SIDES
@pytest.mark.parametrize("early", [1, 0])
def test_a_gap_that_was_filled_can_invert_until_it_expires(side, early):
    through = {f"r{3 + AGE - early}": (92.0, 92.5, 88.0, 88.5)}
    filled = (92.0, 92.5, 90.0, 92.25)
    turned, happened = zone_story("fair_value_gap", side, 3, quiet_candles(40, side, r5=filled, **through))
    assert ends(happened)[0] == (0, 5, "filled")
    assert turned["known"].tolist() == ([3 + AGE - early] if early else [])


# Several timeframes


START = pd.Timestamp("2024-03-04", tz="UTC")


def known_patterns(*told: tuple) -> pd.DataFrame:
    "Patterns of (kind, timeframe, minutes until known, direction, bottom, top), sorted by `known_at`."
    table = pd.DataFrame(told, columns=["kind", "timeframe", "known_at", "direction", "bottom", "top"])
    table["known_at"] = (START + pd.to_timedelta(table["known_at"], unit="min")).dt.as_unit("ns")
    level, never = (table["bottom"] + table["top"]) / 2, table["known_at"].where(table["known_at"].isna())
    return table.assign(scale="internal", level=level, ended_at=never)


def test_the_trend_of_a_timeframe_lasts_its_age_in_its_own_candles():
    broken = known_patterns(("break_of_structure", "15m", 60, -1, 99.0, 99.0))
    at = START + pd.to_timedelta([59, 60, 60 + 15 * AGE, 61 + 15 * AGE], unit="min")
    assert trend_at(pd.DatetimeIndex(at), broken, "15m", AGE).tolist() == [0, -1, -1, 0]
    nanosecond = pd.DatetimeIndex([at[2] + pd.Timedelta(1, "ns")])
    assert trend_at(nanosecond, broken, "15m", AGE).tolist() == [0]
    assert trend_at(pd.DatetimeIndex(at), broken, "5m", AGE).tolist() == [0, 0, 0, 0]


def test_a_zone_counts_from_the_close_that_makes_it_known_until_the_one_that_ends_it():
    zone = known_patterns(("order_block", "15m", 60, 1, 99.0, 101.0))
    zone["ended_at"] = START + pd.Timedelta("90min")
    at = pd.DatetimeIndex(START + pd.to_timedelta([59, 60, 89, 90], unit="min"))
    said = confluence_at(at, np.full(4, 100.0), zone, PatternConfig(timeframes=["15m"]))
    assert said["zone_15m"].tolist() == [0, 1, 1, 0]


def test_the_own_timeframe_of_a_pattern_is_not_a_higher_one():
    config = PatternConfig(timeframes=["5m", "15m", "1h"])
    told = [
        ("break_of_structure", "5m", 60, 1, 100.0, 100.0),
        ("break_of_structure", "15m", 60, 1, 100.0, 100.0),
        ("break_of_structure", "1h", 60, -1, 100.0, 100.0),
        ("order_block", "5m", 65, 1, 99.0, 101.0),
        ("order_block", "15m", 65, 1, 99.0, 101.0),
        ("order_block", "1h", 65, 1, 99.0, 101.0),
    ]
    patterns = known_patterns(*told)
    said = pattern_confluence(patterns, config)[3:]
    # trends: 15m up, 1h down; zones: both bullish; weights 2 and 3
    assert said.round(12).tolist()[:2] == [round((2 * 1 + 3 * 0) / 5, 12), 0.0] and np.isnan(said.iloc[2])

    events = patterns[3:].assign(time=patterns["known_at"][3:], aim=100.0)
    own = _confluence(events, patterns, config)
    assert np.round(own[:2], 12).tolist() == said.round(12).tolist()[:2] and np.isnan(own[2])
