"""Streams: bad candles are refused as in a table, in the same words; copies and files go on bit for bit."""

import copy
import pickle
import re
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_patterns_on_odd_candles import SMALL, configs, odd_candles, thorough

from smc_ml.config import UserError
from smc_ml.patterns.config import PatternConfig
from smc_ml.patterns.detection import detect_patterns
from smc_ml.patterns.saved_streams import restore_stream, save_stream
from smc_ml.patterns.streaming import Candle, PatternStream, StreamError, candles_of, update_table
from smc_ml.simulation.market import random_walk

FIELDS = Candle._fields
PRICES = FIELDS[1:]


def in_batch(rows: list[dict], config: PatternConfig) -> pd.DataFrame | str:
    "The patterns of these candles as one table, or the sentence that refuses them."
    table = pd.DataFrame(rows).set_index("open_time")
    if isinstance(table.index, pd.DatetimeIndex):
        table.index = table.index.as_unit("ns")
    try:
        return detect_patterns(table, config, "5m")
    except UserError as error:
        return str(error)


def in_stream(rows: list[dict], config: PatternConfig) -> pd.DataFrame | str:
    "The same, candle by candle."
    stream, updates = PatternStream(config, "5m"), []
    try:
        for row in rows:
            updates.append(stream.update(row))
    except UserError as error:
        return str(error)
    return update_table(updates, config, "5m")


def agree(rows: list[dict], config: PatternConfig) -> pd.DataFrame | str:
    "What batch and stream both say of these candles."
    batch, stream = in_batch(rows, config), in_stream(rows, config)
    if isinstance(batch, str) or isinstance(stream, str):
        assert re.sub(r" in row \d+ at", " at", str(batch)) == re.sub(r" in row \d+ at", " at", str(stream))
    else:
        pd.testing.assert_frame_equal(stream, batch, check_exact=True)
    return batch


def rows_of(candles: pd.DataFrame) -> list[dict]:
    return [candle._asdict() for candle in candles_of(candles)]


bad_value = st.sampled_from(
    [np.nan, np.inf, -np.inf, 0.0, -1.0, "1.0", "", None, np.float64(1e9), 3, np.int64(7)]
)
bad_time = st.sampled_from(
    [
        lambda time, before: before,
        lambda time, before: before - pd.Timedelta("10min"),
        lambda time, before: time + pd.Timedelta("1min"),
        lambda time, before: time.tz_localize(None),
        lambda time, before: time.value // 1_000_000,
        lambda time, before: np.int64(time.value),
        lambda time, before: str(time),
        lambda time, before: time.to_pydatetime().replace(tzinfo=None),
        lambda time, before: pd.NaT,
        lambda time, before: time.timestamp(),
        lambda time, before: time.date(),
    ]
)


@given(odd_candles(), configs, st.integers(1, 59), st.sampled_from(PRICES), bad_value)
@thorough
def test_a_bad_value_is_refused_in_the_same_words(candles, config, row, name, value):
    rows = rows_of(candles.iloc[:60])
    rows[row][name] = value
    agree(rows, config)


@given(odd_candles(), configs, st.integers(1, 59), bad_time)
@thorough
def test_a_bad_time_is_refused_and_one_in_other_words_is_the_same_time(candles, config, row, change):
    rows = rows_of(candles.iloc[:60])
    rows[row]["open_time"] = change(rows[row]["open_time"], rows[row - 1]["open_time"])
    batch, stream = in_batch(rows, config), in_stream(rows, config)
    if isinstance(stream, str):  # a table tells of the mixture of times, a candle of its own
        assert isinstance(batch, str) and stream.startswith("candles: ") and "\n" not in stream
    else:
        whole = in_batch(rows_of(candles.iloc[:60]), config)
        pd.testing.assert_frame_equal(stream, whole, check_exact=True)
        assert isinstance(batch, str) or batch.equals(whole)


@pytest.mark.parametrize("row", [0, 30])
@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"close": np.nan}, "column close is nan at 2024-01-0"),
        ({"high": np.inf}, "column high is inf at 2024-01-0"),
        ({"high": 1.0}, "column high is 1.0 at 2024-01-0"),
        ({"volume": -1.0}, "column volume is -1.0 at 2024-01-0"),
        ({"close": "n/a"}, "('n/a'): correct it"),
        ({"close": None}, "column close is nan at 2024-01-0"),
        ({"open_time": 7}, "column open_time holds 7 in the "),
        ({"open_time": "2024-01-02 00:00"}, "column open_time has no time zone (first 2024-01-02 00:00:00)"),
        (
            {"open_time": datetime(2024, 1, 2)},
            "column open_time has no time zone (first 2024-01-02 00:00:00)",
        ),
        ({"open_time": pd.Timestamp("2024-01-02 00:01", tz="UTC")}, "is not on the 5m grid"),
    ],
)
def test_what_is_refused(row, changed, sentence):
    rows = rows_of(random_walk(60, seed=3))
    rows[row] |= changed
    if "close" in changed and changed["close"] is None and row == 0:
        rows[row]["close"] = np.nan
    said = in_stream(rows, PatternConfig(**SMALL))
    assert sentence in said and said.startswith("candles: ") and "\n" not in said
    batch = in_batch(rows[: row + 1], PatternConfig(**SMALL))
    assert isinstance(batch, str) and ("open_time" in changed or row == 0 or sentence in batch)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"volume": "many"}, "ETHUSDT: column volume is not a number at {now} ('many'): correct it"),
        ({"open_time": "noon"}, "ETHUSDT: column open_time holds 'noon' in the {which}, which is no time: "),
        ({"open_time": 7}, "ETHUSDT: column open_time holds 7 in the {which}: write times as whole"),
        ({"open_time": None}, "ETHUSDT: column open_time holds '' in the {which}, which is no time: "),
        ({"close": np.inf}, "ETHUSDT: column close is inf at {now}: "),
        ({"open_time": pd.Timestamp("2300-01-01", tz="UTC").as_unit("s")}, "ETHUSDT: open_time 2300-01-01"),
    ],
)
@pytest.mark.parametrize("row", [0, 5])
def test_a_refused_candle_is_named_by_symbol_and_time(row, changed, sentence):
    stream, rows = PatternStream(timeframe="5m", source="ETHUSDT"), rows_of(random_walk(6, seed=3))
    for before in rows[:row]:
        stream.update(before)
    which = f"candle after {rows[row - 1]['open_time']}" if row else "first candle"
    with pytest.raises(UserError) as refused:
        stream.update(rows[row] | changed)
    assert sentence.format(now=rows[row]["open_time"], which=which) in str(refused.value)
    assert " row " not in str(refused.value) and stream.rows == row


@pytest.mark.parametrize("thing", [None, "2024-01-02,1,1,1,1,1", 1.0, (1, 2, 3), [1.0] * 6, np.ones(6), b""])
def test_what_names_no_values_is_refused(thing):
    stream = PatternStream(timeframe="5m")
    with pytest.raises(UserError, match=f"found {type(thing).__name__}"):
        stream.update(thing)
    with pytest.raises(UserError, match=f"found {type(thing).__name__}, not a table of candles") as fed:
        stream.feed(thing)
    with pytest.raises(UserError) as batch:
        detect_patterns(thing, timeframe="5m")
    assert str(fed.value) == str(batch.value) and stream.rows == 0


def test_what_is_certain_is_the_same_candle():
    candles = random_walk(80, seed=6)
    rows, zone = rows_of(candles), UTC
    whole = detect_patterns(candles, PatternConfig(**SMALL), "5m")
    forms = [
        lambda row: Candle(**row),
        lambda row: row,
        lambda row: pd.Series(row),
        lambda row: row | {"open_time": row["open_time"].tz_convert("Asia/Tokyo")},
        lambda row: row | {"open_time": row["open_time"].as_unit("us")},
        lambda row: row | {"open_time": row["open_time"].to_pydatetime().astimezone(zone)},
        lambda row: {name: np.float64(value) if name in PRICES else value for name, value in row.items()},
    ]
    for form in forms:
        stream = PatternStream(PatternConfig(**SMALL), "5m")
        updates = [stream.update(form(row)) for row in rows]
        table = update_table(updates, PatternConfig(**SMALL))
        pd.testing.assert_frame_equal(table, whole, check_exact=True)


def test_a_table_with_one_bad_candle_changes_nothing():
    candles = random_walk(300, seed=3)
    stream = PatternStream(PatternConfig(**SMALL), "5m")
    stream.feed(candles.iloc[:100])
    worse = candles.iloc[100:].assign(
        close=lambda table: table["close"].where(table.index != table.index[77])
    )
    with pytest.raises(UserError, match="column close is nan at"):
        stream.feed(worse)
    with pytest.raises(UserError, match="is there twice"):
        stream.feed(candles.iloc[99:])
    assert stream.rows == 100
    stream.feed(candles.iloc[100:])


def told(updates: list) -> list[bytes]:
    return [pickle.dumps(update) for update in updates]


@given(odd_candles(), configs, st.integers(0, 59))
@thorough
def test_a_copy_goes_on_bit_for_bit_and_disturbs_nothing(tmp_path_factory, candles, config, cut):
    stream, path = PatternStream(config, "5m"), tmp_path_factory.mktemp("streams") / "one"
    stream.feed(candles.iloc[:cut]) if cut else None
    save_stream(stream, path)
    copies = [
        copy.copy(stream),
        copy.deepcopy(stream),
        pickle.loads(pickle.dumps(stream)),
        restore_stream(path),
    ]
    later = [told(each.feed(candles.iloc[cut:])) for each in copies]
    straight = told(stream.feed(candles.iloc[cut:]))
    assert all(each == straight for each in later)


@given(odd_candles(), configs, st.integers(0, 59))
@thorough
def test_the_newest_updates_are_the_newest_rows(candles, config, cut):
    updates = PatternStream(config, "5m").feed(candles)
    whole = detect_patterns(candles, config, "5m")
    newest = whole[whole["known_at"] > candles.index[cut] + pd.Timedelta("5min")].reset_index(drop=True)
    pd.testing.assert_frame_equal(update_table(updates[cut + 1 :], config, "5m"), newest, check_exact=True)
    some = [update for update in updates[cut + 1 :] if len(update.events) or len(update.life_events)]
    pd.testing.assert_frame_equal(update_table(some, config, "5m"), newest, check_exact=True)
    if len(some) > 2:
        with pytest.raises(StreamError, match="does not go on from"):
            update_table(some[:1] + some[2:], config, "5m")


def test_many_zones_and_a_copy_of_them():
    "More zones alive than there is room for at first: the copy has the room that its original made."
    config = PatternConfig(**SMALL | {"zone_age": 3000, "minimum_gap": 0.0, "swing_age": 400})
    candles = random_walk(4000, seed=8)
    whole = PatternStream(config, "5m").feed(candles)
    stream = PatternStream(config, "5m")
    stream.feed(candles.iloc[:3500])
    assert len(stream.__getstate__()["arrays"]["held"]) > 256
    for each in (copy.copy(stream), copy.deepcopy(stream), stream):
        assert told(each.feed(candles.iloc[3500:])) == told(whole[3500:])
