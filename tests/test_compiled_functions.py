"""Compiled functions do not check bounds: those that anyone can call refuse what reads beyond an array."""

import importlib
import inspect
import pkgutil
import re

import numpy as np
import pytest
from numba.core.registry import CPUDispatcher

import smc_ml
from smc_ml.candles import TIMEFRAMES
from smc_ml.config import UserError
from smc_ml.controls.placebo import reactions
from smc_ml.labels.barriers import barrier_exits, first_touch, limit_fills, replay
from smc_ml.labels.horizons import extremes_ahead
from smc_ml.patterns.config import PatternConfig
from smc_ml.patterns.confluence import confluence_at, zone_at
from smc_ml.patterns.detection import detect_patterns, event_table
from smc_ml.patterns.detectors import DETECTORS
from smc_ml.patterns.events import (
    CANDLE_RECORD,
    EVENT_RECORD,
    LIFE_EVENT_RECORD,
    by_close,
    closing_order,
    prepare,
    rough_candles,
)
from smc_ml.patterns.sessions import schedule
from smc_ml.patterns.zones import run_zones, zone_traits
from smc_ml.simulation.market import random_walk

SIZE = 50
FAR = 10**9  # a row that is not there: reading it ends the interpreter
CHECKS = ("rows", "lengths", "room", "walk")


def compiled_functions() -> dict[str, CPUDispatcher]:
    "Every compiled function of the package with a public name, by module and name."
    found = {}
    for module in pkgutil.walk_packages(smc_ml.__path__, "smc_ml."):
        if ".migrations" in module.name:  # of the database: they run inside alembic alone
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, CPUDispatcher) and value.__module__ == module.name and name[0] != "_":
                found[f"{module.name}.{name}"] = value
    return found


def test_a_compiled_function_with_a_public_name_checks_what_it_is_given():
    functions = {name: f for name, f in compiled_functions().items() if not name.startswith("smc_ml.rows.")}
    assert len(functions) >= 20
    for name, function in functions.items():
        assert re.search(rf"\bcheck_({'|'.join(CHECKS)})\(", inspect.getsource(function.py_func)), name


def prices() -> list[np.ndarray]:
    "Open, high, low and close."
    close = 100 + np.random.default_rng(3).normal(size=SIZE).cumsum()
    return [close, close + 1, close - 1, close.copy()]


ROWS = pytest.mark.parametrize("rows", [[FAR, 1], [1, SIZE + 1], [-FAR, 1], [1, -3], [SIZE + 1] * 2], ids=str)


@ROWS
def test_rows_that_do_not_exist_are_refused(rows):
    rows, side, price = np.array(rows), np.array([1, -1]), np.array([100.0, 100.0])
    open_, high, low, close = prices()
    with pytest.raises(UserError, match="start is .* is what fits: pass rows of these candles"):
        first_touch(high, low, close, rows, side, price, price, 5)
    with pytest.raises(UserError, match="start is"):
        limit_fills(open_, high, low, rows, side, price, 5)
    for entry in (None, price):
        with pytest.raises(UserError, match="entry_row is"):
            barrier_exits(open_, high, low, rows, side, price, price, 5, 0, entry)
    with pytest.raises(UserError, match="rows is"):
        reactions(open_, high, low, close, np.ones(SIZE), rows, side, 5, 1.0)
    ends = np.full(SIZE, -1)
    ends[:2] = rows
    with pytest.raises(UserError, match="ends is"):
        extremes_ahead(high, low, ends)
    base, there = np.stack([open_, high, low]), np.array([1, 2])
    for place, name in enumerate(("first", "last", "head", "tail")):
        given = [there, there, there, there]
        given[place] = rows
        with pytest.raises(UserError, match=f"{name} is"):
            replay(base, base, 1, *given, side, price, price, price)
    with pytest.raises(UserError, match="known is"):
        closing_order([rows], SIZE)


def test_arrays_of_different_lengths_are_refused():
    rows, side, price = np.array([1, 2]), np.array([1, -1]), np.array([100.0, 100.0])
    open_, high, low, close = prices()
    fits = "is what fits: pass rows of these candles"
    for call in (
        lambda: first_touch(high[:9], low, close, rows, side, price, price, 5),
        lambda: first_touch(high, low, close, rows, side[:1], price, price, 5),
        lambda: limit_fills(open_, high, low[:9], rows, side, price, 5),
        lambda: limit_fills(open_, high, low, rows[:1], side, price, 5),
        lambda: barrier_exits(open_, high[:9], low, rows, side, price, price, 5),
        lambda: barrier_exits(open_, high, low, rows, side[:1], price, price, 5),
        lambda: barrier_exits(open_, high, low, rows, side, price, price, 5, 0, price[:1]),
        lambda: extremes_ahead(high, low[:9], np.full(SIZE, -1)),
        lambda: first_touch(high, low, close, rows, side, price, price, 5, rows[:1]),
        lambda: limit_fills(open_, high, low, rows, side, price, 5, rows[:1]),
        lambda: reactions(open_, high, low, close, np.ones(9), rows, side, 5, 1.0),
    ):
        with pytest.raises(UserError, match=fits):
            call()


def test_nothing_is_no_reason_to_refuse():
    none, nothing = np.zeros(0, np.int64), np.zeros(0)
    open_, high, low, close = prices()
    assert len(first_touch(high, low, close, none, none, nothing, nothing, 5)) == 0
    assert len(limit_fills(open_, high, low, none, none, nothing, 5)[0]) == 0
    assert len(barrier_exits(nothing, nothing, nothing, none, none, nothing, nothing, 5)[0]) == 0
    assert len(extremes_ahead(nothing, nothing, none)[0]) == 0
    assert len(reactions(open_, high, low, close, np.ones(SIZE), none, none, 5, 1.0)[0]) == 0
    assert not len(closing_order([none], 0)) and not len(by_close([np.zeros(0, EVENT_RECORD)], 0))


OTHERS = [row.other for row in DETECTORS if row.other]


@pytest.mark.parametrize("detector", [*DETECTORS, *OTHERS], ids=lambda row: row.name)
def test_a_detector_refuses_rows_and_rings_that_do_not_exist(detector):
    config, candles = PatternConfig.preset("tradingview"), rough_candles(SIZE, seed=1)
    step = TIMEFRAMES["5m"].value
    memory = (*detector.arguments(config, step), *detector.state(config))
    reads = [schedule(0, SIZE * step, ("day",))] if "calendar" in detector.reads else []
    reads = reads or [np.zeros(1, EVENT_RECORD) for _ in detector.reads[:1]]
    out = [np.zeros(4000, EVENT_RECORD)] + [np.zeros(9000, LIFE_EVENT_RECORD)] * (
        detector.life_room(config) > 0
    )
    if detector.by_event:
        for row in (SIZE, FAR, -1):
            reads[0]["known"] = row
            with pytest.raises(UserError, match="known is"):
                detector.run(candles, -1, *reads, *memory, *out)
        reads[0]["known"] = 3
        with pytest.raises(UserError, match="the room for events is 0"):
            detector.run(candles, -1, *reads, *memory, out[0][:0])
        return
    for mask, start, stop in ((-1, 0, SIZE + 1), (-1, -1, 3), (-1, FAR, FAR + 1), (63, 0, 1), (-7, 0, 1)):
        with pytest.raises(UserError, match="is what fits: pass rows"):
            detector.run(candles, mask, start, stop, *reads, *memory, *out)


def test_candles_are_prepared_within_their_rows():
    for start, stop in ((0, SIZE + 1), (-1, 3), (FAR, FAR + 1)):
        with pytest.raises(UserError, match="is what fits: pass rows"):
            prepare(np.zeros(SIZE, CANDLE_RECORD), -1, start, stop, 3, 1, False)


def test_more_targets_than_there_is_room_for_are_refused():
    "A hundred swings of one row, where two can be known."
    config, candles = PatternConfig(structure_age=2, zone_age=2), rough_candles(SIZE, seed=1)
    swings = np.zeros(900, EVENT_RECORD)
    swings["known"], swings["formed"], swings["direction"], swings["scale"] = 9, 8, -1, 1
    swings["level"] = swings["top"] = swings["bottom"] = 1e6 + np.arange(900)
    for name in ("pools", "liquidity"):
        row = next(row for row in DETECTORS if row.name == name)
        memory = (*row.arguments(config, 1), *row.state(config))
        out = [np.zeros(4000, EVENT_RECORD)] + [np.zeros(90_000, LIFE_EVENT_RECORD)] * (
            row.life_room(config) > 0
        )
        with pytest.raises(UserError, match="the room for"):
            row.run(candles, -1, 0, SIZE, swings, *memory, *out)


def test_events_that_are_no_patterns_are_refused():
    candles = rough_candles(SIZE, seed=1)
    odd = np.zeros(1, EVENT_RECORD)
    for kind in (-1, 21, 127):
        odd["kind"] = kind
        with pytest.raises(UserError, match=f"kind is {kind}"):
            run_zones(candles, odd, zone_traits(), 5, 1)


def test_a_table_of_events_refuses_numbers_that_are_not_there():
    events, life = np.zeros(2, EVENT_RECORD), np.zeros(1, LIFE_EVENT_RECORD)
    ranks, at, once = np.arange(2), np.zeros(2, np.int64), np.zeros(1, np.int64)
    config = PatternConfig()
    assert len(event_table([events], ranks, [at], life, once, config, "5m")) == 2
    for number in (2, FAR, -1):
        life["number"] = number
        with pytest.raises(UserError, match="the number of a life event is"):
            event_table([events], ranks, [at], life, once, config, "5m")
    life["number"], life["what"] = 0, 3
    with pytest.raises(UserError, match="what happened is 3"):
        event_table([events], ranks, [at], life, once, config, "5m")
    life["what"] = 0
    with pytest.raises(UserError, match="the rank of an event is"):
        event_table([events], np.array([0, FAR]), [at], life, once, config, "5m")
    for wrong in ([ranks[:1], [at], life, once], [ranks, [at[:1]], life, once], [ranks, [at], life, at]):
        with pytest.raises(UserError, match="events is"):
            event_table([events], *wrong, config, "5m")


def test_prices_and_times_of_a_confluence_belong_together():
    candles = random_walk(400, seed=2)
    patterns, config = detect_patterns(candles), PatternConfig(timeframes=["5m"])
    times, price = candles.index, candles["close"].to_numpy()
    assert len(zone_at(times, price, patterns, "5m")) == 400
    for few in (price[:7], np.zeros(0)):
        with pytest.raises(UserError, match="the number of prices is"):
            zone_at(times, few, patterns, "5m")
    with pytest.raises(UserError, match="times of prices: 2024-01-02 09:10:00.00:00 stands after"):
        confluence_at(times[::-1], price, patterns, config)
    with pytest.raises(UserError, match="patterns by known_at: .* stands after .*: sort them by time"):
        confluence_at(times, price, patterns[::-1], config)
    assert len(confluence_at(times[:0], price[:0], patterns, config)) == 0
