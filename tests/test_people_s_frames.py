"""Frames as people have them go through one door, or are refused in one true sentence, everywhere alike."""

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow
import pytest

from smc_ml.candles import CandleError, Market, as_candles, resample, validate_candles
from smc_ml.features.table import feature_table
from smc_ml.figures.patterns import pattern_figure
from smc_ml.labels.config import LabelingConfig
from smc_ml.labels.horizons import horizon_targets
from smc_ml.labels.outcomes import SMCPatternLabeler, label_patterns
from smc_ml.patterns.config import PatternConfig
from smc_ml.patterns.confluence import confluence
from smc_ml.patterns.detection import check_series, detect_patterns, detect_timeframes
from smc_ml.patterns.streaming import PatternStream, update_table

COUNT = 60
NAMES = ("open", "high", "low", "close", "volume")


def walk() -> pd.DataFrame:
    "Candles that keep the contract; whole numbers and halves, so that single precision holds them."
    close = 100 + 8 * np.sin(np.arange(COUNT) / 5).round(0) + np.arange(COUNT) % 3
    opened = np.append(100.0, close[:-1])
    index = pd.date_range("2024-01-02", periods=COUNT, freq="5min", tz="UTC", unit="ns", name="open_time")
    index.freq = None
    high, low = np.maximum(opened, close) + 0.5, np.minimum(opened, close) - 0.5
    return pd.DataFrame(
        dict(zip(NAMES, (opened, high, low, close, 1.0 + np.arange(COUNT) % 7), strict=True)), index=index
    )


WALK = walk()
OPENS = WALK.index
BARE = WALK.reset_index(drop=True)


def timed(times, name="time", **columns) -> pd.DataFrame:
    "The candles with a column of times."
    return BARE.assign(**{name: times}, **columns)


def indexed(times, name=None) -> pd.DataFrame:
    "The candles with another index."
    return WALK.set_axis(pd.Index(times, name=name))


def renamed(*names: str) -> pd.DataFrame:
    "The candles with other names of their columns."
    return WALK.set_axis(list(names), axis=1)


def retyped(change) -> pd.DataFrame:
    "The candles with every value changed to another type."
    return pd.DataFrame({name: [change(value) for value in WALK[name]] for name in WALK}, index=OPENS)


def levels(*orders: str) -> pd.DataFrame:
    "The candles as yfinance gives them, in one order of levels or another."
    wide = pd.concat({"BTC-USD": renamed("Open", "High", "Low", "Close", "Volume")}, axis=1)
    wide.columns.names = ["Ticker", "Price"]
    return wide.swaplevel(axis=1) if "price first" in orders else wide


def counts(unit: str) -> np.ndarray:
    return OPENS.as_unit(unit).asi8


BINANCE = timed(
    counts("ms"),
    "Open time",
    **{
        "Close time": counts("ms") + 299_999,
        "Quote asset volume": 5.0,
        "Number of trades": 7,
        "Taker buy base asset volume": 0.5,
        "Taker buy quote asset volume": 2.5,
        "Ignore": 0,
    },
).rename(columns=str.capitalize)
CAMEL = timed(counts("ms"), "openTime", closeTime=1, quoteAssetVolume="5.0", numberOfTrades=7, ignore="0")
MIXED_ZONES = [time.tz_convert("Asia/Tokyo") if at % 2 else time for at, time in enumerate(OPENS)]

ACCEPTED = {
    "as it is": WALK,
    **{f"index in {unit}": indexed(OPENS.as_unit(unit), "open_time") for unit in ("s", "ms", "us")},
    **{
        f"index of {zone}": indexed(OPENS.tz_convert(zone), "open_time")
        for zone in ("America/New_York", "Asia/Kolkata", "Etc/UTC", "UTC+01:00")
    },
    **{
        f"index called {name}": WALK.rename_axis(name)
        for name in (None, "time", "Date", "Open time", "index", 0)
    },
    "index without a frequency": WALK.set_axis(pd.DatetimeIndex(OPENS.to_numpy(), tz="UTC", freq=None)),
    "index of Timestamps as objects": WALK.set_axis(pd.Index(list(OPENS), dtype=object)),
    "index of datetimes as objects": WALK.set_axis(pd.Index(list(OPENS.to_pydatetime()), dtype=object)),
    "index of two zones": WALK.set_axis(pd.Index(MIXED_ZONES, dtype=object)),
    "index of texts": indexed(OPENS.strftime("%Y-%m-%dT%H:%M:%SZ")),
    "index of texts with another zone": indexed(OPENS.tz_convert("Asia/Tokyo").map(str)),
    **{f"index of counts in {unit}": indexed(counts(unit)) for unit in ("s", "ms", "us", "ns")},
    "index of arrow times": WALK.set_axis(OPENS.astype("timestamp[us, tz=America/New_York][pyarrow]")),
    "index and the same column": WALK.assign(open_time=counts("ms")),
    "index of times and rows of them in a column": WALK.assign(time=range(COUNT), index=range(COUNT)),
    **{
        f"column {name}": timed(OPENS.as_unit("us"), name)
        for name in (
            "open_time",
            "time",
            "timestamp",
            "date",
            "datetime",
            "Open time",
            "Date",
            "DateTime",
            "ts",
        )
    },
    **{f"column of counts in {unit}": timed(counts(unit), "timestamp") for unit in ("s", "ms", "us", "ns")},
    "column of counts as floats": timed(counts("ms").astype(float)),
    "column of counts as texts": timed(counts("ms").astype(str)),
    "column of ISO texts": timed(OPENS.strftime("%Y-%m-%d %H:%M:%S+00:00"), "date"),
    "column in UTC by its name": timed(OPENS.tz_localize(None), "Datetime UTC"),
    "column that an index became": WALK.rename_axis(None).reset_index(),
    "two columns of times": timed(counts("ms"), "timestamp", date=OPENS.tz_localize(None)),
    "open and close times": timed(OPENS, "open_time", close_time=OPENS + pd.Timedelta("299999ms")),
    "rows of close times beside open times": timed(OPENS, "open_time").set_axis(
        (OPENS + pd.Timedelta("5min")).rename("close_time")
    ),
    "capitals": renamed("Open", "High", "Low", "Close", "Volume"),
    "shouted": renamed("OPEN", "HIGH", "LOW", "CLOSE", "VOLUME"),
    "letters": renamed(*"ohlcv"),
    "capital letters": renamed(*"OHLCV"),
    "vol": renamed("open", "high", "low", "close", "vol"),
    "Vol.": renamed("Open", "High", "Low", "Close", "Vol."),
    "numbered": renamed("1. open", "2. high", "3. low", "4. close", "5. volume"),
    "brackets": renamed("<OPEN>", "<HIGH>", "<LOW>", "<CLOSE>", "<VOL>"),
    "spaces": renamed(" open", "high ", "low", "close", " volume"),
    "Adj Close beside Close": renamed("Open", "High", "Low", "Close", "Volume").assign(**{"Adj Close": 1.0}),
    "Dividends": WALK.assign(Dividends=0.0, **{"Stock Splits": 0.0}),
    "two volumes": WALK.rename(columns={"volume": "Volume BTC"}),
    "another order of columns": WALK[list(NAMES[::-1])],
    "indicators": WALK.assign(ema_20=1.0, signal="buy", EMA20=[None] * COUNT),
    "a symbol": WALK.assign(symbol="BTCUSDT"),
    "a symbol in the index": timed(OPENS, "open_time", symbol="BTCUSDT").set_index("symbol"),
    "closed candles": WALK.assign(complete=True),
    "two columns of nothing": pd.concat(
        [WALK.assign(x=1), WALK[["open"]].rename(columns={"open": "x"})], axis=1
    ),
    "levels of yfinance": levels("price first"),
    "levels with the ticker first": levels(),
    "levels of yfinance, index taken out": levels("price first").reset_index(names=[("Date", "")]),
    "rows of one instrument in levels": pd.concat({"BTCUSDT": WALK}, names=["symbol"]),
    "single precision": WALK.astype("float32"),
    "half precision": WALK.astype({"volume": "float16"}),
    "whole volumes": WALK.astype({"volume": "int64"}),
    "unsigned volumes": WALK.astype({"volume": "uint8"}),
    "nullable": WALK.convert_dtypes(),
    "arrow": WALK.reset_index().convert_dtypes(dtype_backend="pyarrow"),
    "objects": WALK.astype(object),
    "decimals": retyped(lambda value: Decimal(str(value))),
    "texts": retyped(str),
    "texts of arrow": WALK.astype(str).astype("string[pyarrow]"),
    "categories": WALK.astype(str).astype("category"),
    "sparse": WALK.astype({"volume": pd.SparseDtype(float)}),
    "Binance's words": BINANCE,
    "Binance's words in code": CAMEL,
    "a table of arrow": pyarrow.Table.from_pandas(WALK.reset_index(), preserve_index=False),
    "arrays by name": {"time": counts("ms"), **{name: WALK[name].to_numpy() for name in WALK}},
    "records": timed(counts("ms")).to_dict("records"),
    "named tuples": list(WALK.reset_index().itertuples(index=False)),
    "a structured array": timed(counts("ms")).to_records(index=False),
}
NAIVE = "has no time zone (first 2024-01-02 00:00:00): give the offset of its clock"
REFUSED = {
    "no zone": (indexed(OPENS.tz_localize(None), "open_time"), NAIVE),
    "a column without a zone": (timed(OPENS.tz_localize(None), "date"), f"column date {NAIVE}"),
    "texts without a zone": (timed(OPENS.strftime("%Y-%m-%d %H:%M"), "date"), NAIVE),
    "periods": (WALK.set_axis(OPENS.tz_localize(None).to_period("5min")), NAIVE),
    "arrow times without a zone": (indexed(OPENS.tz_localize(None).astype("timestamp[us][pyarrow]")), NAIVE),
    "days": (indexed([datetime.date(2024, 1, 2)] * COUNT, "date"), NAIVE),
    "a zone in some rows": (
        WALK.set_axis(pd.Index([OPENS[0], *OPENS[1:].tz_localize(None)], dtype=object)),
        "has a time zone in some rows only",
    ),
    "a missing time": (
        indexed(OPENS.where(OPENS != OPENS[3])),
        "column open_time is empty in row 3: fill in",
    ),
    "a missing time in a column": (
        timed(OPENS.where(OPENS != OPENS[3]), "date"),
        "column date is empty in row 3",
    ),
    "times after 2262": (
        indexed(OPENS.as_unit("s") + 400 * pd.Timedelta("365D")),
        "beyond the years 1678 to 2261",
    ),
    "datetimes after 2262": (
        timed([*OPENS[:-1].to_pydatetime(), datetime.datetime(9999, 1, 1, tzinfo=datetime.UTC)]),
        "column time holds 9999-01-01 00:00:00+00:00, beyond the years",
    ),
    "rows alone": (BARE, "no open times in the index or in a column (found: open, high, low, close, volume)"),
    "rows from one": (indexed(list(range(1, COUNT + 1))), "write times as whole counts since 1970"),
    "rows in a column": (timed(range(COUNT), "index"), "column open_time holds 0 in row 0"),
    "counts of two units": (indexed([*counts("s")[:9], *counts("ms")[9:]]), "all in one unit"),
    "half counts": (timed(counts("s") + 0.5), "write times as whole counts since 1970"),
    "times of day": (timed(OPENS.strftime("%H:%M")), "which is no time"),
    "lengths of time": (indexed(OPENS - OPENS[0]), "which is no time"),
    "truths": (timed(True), "which is no time"),
    "close times": (WALK.rename_axis("close_time"), "the times are those of the close"),
    "a column of close times": (timed(OPENS, "Close time"), "subtract the timeframe, as in frame.index - pd"),
    "an index that the column contradicts": (
        WALK.set_axis(OPENS + pd.Timedelta("5min")).assign(open_time=counts("ms")),
        "the index is 2024-01-02 00:05:00+00:00 where the column of open times is 2024-01-02 00:00:00+00:00",
    ),
    "newest first": (WALK[::-1], "stands after 2024-01-02 04:55:00+00:00: sort"),
    "newest first in a column": (timed(counts("ms"))[::-1], "stands after 2024-01-02 04:55:00+00:00: sort"),
    "a time twice": (
        WALK.iloc[[0, 1, 1, *range(2, COUNT)]],
        "open_time 2024-01-02 00:05:00+00:00 is there twice: drop one",
    ),
    "a time twice with other values": (
        pd.concat([WALK, WALK.iloc[[-1]].assign(volume=9.0)]),
        "is there twice, with volume 4.0 in row 59 and 9.0 in row 60",
    ),
    "close and Close": (
        WALK.assign(Close=1.0),
        "column close is there twice (found: close, Close): remove one",
    ),
    "open twice": (
        pd.concat([WALK, WALK[["open"]]], axis=1),
        "column open is there twice (found: open, open)",
    ),
    "Adj Close alone": (
        renamed("Open", "High", "Low", "Adj Close", "Volume"),
        "no column close (found: open, high, low, adj_close, volume)",
    ),
    "no volume": (WALK.drop(columns="volume"), "no column volume (found: open, high, low, close)"),
    "an amount": (WALK.rename(columns={"volume": "amount"}), "column amount may count the base currency"),
    "two base volumes": (
        WALK.rename(columns={"volume": "Volume ETH"}).assign(**{"Volume BTC": 1.0}),
        "counts the base currency is not told",
    ),
    "ticks alone": (WALK.rename(columns={"volume": "tick_volume"}), "no column volume"),
    "MetaTrader's counts": (timed(counts("s"), tick_volume=1), "counts from a broker's clock"),
    "no names": (timed(counts("ms"))[["time", *NAMES]].T.reset_index(drop=True).T, "columns have no names"),
    "rows of lists": ([[1, 2, 3, 4, 5, 6]], "the 6 columns have no names: name them, as in frame.set_axis"),
    "an array": (WALK.to_numpy(), "the 5 columns have no names"),
    "no rows": (timed(counts("ms"))[:0], "no candles: check"),
    "several instruments in a column": (
        WALK.assign(symbol=["BTCUSDT", "ETHUSDT"] * 30),
        "the rows are of several instruments (BTCUSDT, ETHUSDT): take one, as in frame[frame['symbol']",
    ),
    "several instruments in rows": (
        pd.concat({"BTC": WALK, "ETH": WALK}, names=["symbol"]),
        "several instruments (BTC, ETH): take one, as in frame.xs('BTC', level='symbol')",
    ),
    "several instruments in columns": (
        pd.concat({"BTC": WALK, "ETH": WALK}, axis=1),
        "several instruments (BTC, ETH): take one, as in frame.xs('BTC', axis=1, level=0)",
    ),
    "levels without times": (pd.concat({"a": BARE}), "not one of times alone"),
    "an unfinished candle": (
        WALK.assign(closed=[True] * 59 + [False]),
        "the candle of open_time 2024-01-02 04:55:00+00:00 has not closed",
    ),
    "text that is no number": (
        WALK.astype({"close": object}).assign(close=["n/a", *WALK["close"][1:]]),
        "column close is not a number in row 0 at 2024-01-02 00:00:00+00:00 ('n/a'): correct it",
    ),
    "thousands": (
        retyped(lambda value: f"{value + 1000:,.1f}"),
        "column open is not a number in row 0 at 2024-01-02 00:00:00+00:00 ('1,100.0')",
    ),
    "truths for volumes": (WALK.assign(volume=True), "column volume is bool, not a number"),
    "a path": ("candles.parquet", "found str, not a table of candles"),
    "a column": (WALK["close"], "found Series, not a table"),
    "nothing": (None, "found NoneType, not a table"),
    "frames by name": ({"BTC": WALK}, "found dict, not a table"),
    "single values": ({"open": 1.0, "close": 1.0}, "found dict, not a table"),
    "nine hundred columns": (
        pd.DataFrame(1.0, OPENS, [f"a_rather_long_name_{number}" for number in range(900)]),
        "no column open (found: a_rather_long_name_0, a_rather",
    ),
}

FEW = PatternConfig(timeframes=("5m",), atr_window=3, pivot_length=1)
PATTERNS, LABELS = detect_patterns(WALK, FEW), LabelingConfig(timeframes=("5m",))
LESS = (
    "feature_table",
    "horizon_targets",
    "confluence",
    "pattern_figure",
    "Market",
    "label_patterns",
    "resample",
)
DOORS = {
    "as_candles": as_candles,
    "validate_candles": lambda frame: validate_candles(frame, "5m"),
    "check_series": check_series,
    "resample": lambda frame: resample(frame, "5m", "15m"),
    "Market": lambda frame: Market({"candles": frame}),
    "detect_patterns": lambda frame: detect_patterns(frame, FEW),
    "detect_timeframes": lambda frame: detect_timeframes({"5m": frame}, FEW),
    "PatternStream.feed": lambda frame: PatternStream(FEW).feed(frame),
    "feature_table": lambda frame: feature_table(frame, wanted=["price_momentum"]),
    "horizon_targets": horizon_targets,
    "label_patterns": lambda frame: label_patterns(frame, PATTERNS, "candles", LABELS),
    "SMCPatternLabeler": lambda frame: SMCPatternLabeler(LABELS).label(frame, "candles"),
    "confluence": lambda frame: confluence(frame, PATTERNS),
    "pattern_figure": lambda frame: pattern_figure(frame, PATTERNS),
}


def is_untouched(frame, before) -> bool:
    return not isinstance(frame, pd.DataFrame) or (
        frame.equals(before) and frame.columns.equals(before.columns)
    )


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_certain_is_accepted_everywhere(name):
    frame = ACCEPTED[name]
    before = frame.copy() if isinstance(frame, pd.DataFrame) else None
    candles = as_candles(frame)
    pd.testing.assert_frame_equal(candles[list(NAMES)], WALK, check_exact=True)
    pd.testing.assert_frame_equal(validate_candles(frame, "5m")[list(NAMES)], WALK, check_exact=True)
    pd.testing.assert_frame_equal(Market({"A": frame})["A"][list(NAMES)], WALK, check_exact=True)
    pd.testing.assert_frame_equal(detect_patterns(frame, FEW), PATTERNS, check_exact=True)
    streamed = update_table(PatternStream(FEW).feed(frame), FEW, "5m")
    pd.testing.assert_frame_equal(streamed, PATTERNS, check_exact=True)
    assert is_untouched(frame, before)


@pytest.mark.parametrize("name", REFUSED)
def test_the_rest_is_refused_in_one_sentence_and_the_same_everywhere(name):
    frame, because = REFUSED[name]
    missing = because.startswith("no column")
    for door, enter in DOORS.items():
        if missing and door in LESS:
            continue
        with pytest.raises(CandleError) as refused:
            enter(frame)
        said = str(refused.value)
        assert because in said and said.startswith("candles: "), door
        assert "\n" not in said and len(said) < 600, door


@pytest.mark.parametrize("door", DOORS)
def test_what_one_accepts_all_accept(door):
    "The same answer as for candles that keep the contract."
    odd = WALK.set_axis(OPENS.tz_convert("Asia/Tokyo").as_unit("us").rename("Date")).astype("float32")
    told, expected = DOORS[door](odd.rename(columns=str.capitalize).assign(extra="x")), DOORS[door](WALK)
    if isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(told, expected, check_exact=True)
    elif door == "pattern_figure":
        assert told.to_json() == expected.to_json()
    else:
        assert repr(told) == repr(expected)


@pytest.mark.parametrize("offset", [2, "+2", "Europe/Athens", "new_york+7"])
def test_a_clock_that_is_told_makes_times_without_a_zone_certain(offset):
    clock = (OPENS + pd.Timedelta("2h")).tz_localize(None)
    for frame in (indexed(clock), timed(clock, "date"), timed(clock.strftime("%Y-%m-%d %H:%M"), "Time")):
        pd.testing.assert_frame_equal(as_candles(frame, offset=offset), WALK, check_exact=True)
    for frame in (indexed(clock.to_period("5min")), timed(counts("s") + 7200, tick_volume=1, spread=3)):
        pd.testing.assert_frame_equal(as_candles(frame, offset=offset), WALK, check_exact=True)
    with pytest.raises(CandleError, match="is no clock .as_candles.frame, offset=…"):
        as_candles(indexed(clock), offset="Athens")


def test_optional_columns_are_kept_and_others_left_out():
    found = as_candles(BINANCE)
    assert list(found) == [*NAMES, "quote_volume", "trades", "taker_buy_volume"]
    assert (found.dtypes == "float64").all() and (found["trades"] == 7).all()
    kept = as_candles(WALK.assign(bid=pd.array([None] * COUNT, "Float64"), mood=1))
    assert list(kept) == [*NAMES, "bid"] and kept["bid"].isna().all()


def test_candles_that_keep_the_contract_are_the_same_object():
    full = WALK.assign(trades=1.0, funding_rate=-0.1)
    for candles in (WALK, full, WALK[list(NAMES[::-1])], WALK.iloc[:0]):
        assert as_candles(candles) is candles
    assert validate_candles(full, "5m") is full and Market({"A": full})["A"] is full


def test_single_candles_of_a_stream_may_be_in_other_words():
    plain, odd = PatternStream(FEW, "5m"), PatternStream(FEW, "5m")
    for time, row in WALK.iterrows():
        told = {"timestamp": time.value // 10**6, **{name.title(): str(value) for name, value in row.items()}}
        expected, found = plain.update(row), odd.update(told)
        assert expected.closed_at == found.closed_at
        assert np.array_equal(expected.events.tobytes(), found.events.tobytes())
