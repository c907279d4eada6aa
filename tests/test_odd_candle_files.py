"""Candles and files that hypothesis makes up or breaks.

Every reader gives a valid table or a one-sentence error that names the file, never anything else.
"""

import json
import string
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smc_ml.candles import PRICES, CandleError, read_candles, validate_candles, write_candles
from smc_ml.config import UserError
from smc_ml.data.sources.base import VALUES, moments
from smc_ml.data.sources.file_source import join_candles
from smc_ml.data.sources.files import open_candle_file
from smc_ml.data.sources.instruments import name_parts, plain_symbol
from smc_ml.data.sources.names import SourceError, clock_zone
from smc_ml.data.sources.order_book import read_books, read_recorded_trades
from smc_ml.writing import write_table

COLUMNS = [*PRICES, "volume"]
ODD = [np.nan, np.inf, -np.inf, -1.0, 0.0, 1e308, 5e-324]
thorough = settings(
    max_examples=120,
    deadline=None,
    derandomize=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)


def good(count: int) -> pd.DataFrame:
    index = pd.date_range("2024-01-01", periods=count, freq="5min", tz="UTC", unit="ns", name="open_time")
    close = 100.0 + np.arange(count) % 7
    return pd.DataFrame(
        {"open": close - 1, "high": close + 1, "low": close - 2, "close": close, "volume": 5.0}, index=index
    )


VALUE_FAULTS = ("value", "type", "double", "unordered", "column", "gap", "twice")
TIME_FAULTS = ("naive", "unit", "off grid", "no time", "zone", "name")


def with_odd_values(draw, table: pd.DataFrame, fault: str, name: str, row: int | None) -> pd.DataFrame:
    "The table with something wrong in its values, rows or columns."
    if fault == "value" and len(table) and list(table).count(name) == 1 and table[name].dtype == float:
        table.iloc[row, list(table).index(name)] = draw(st.sampled_from(ODD) | st.floats(width=64))
    elif fault == "type" and list(table).count(name) == 1:
        kinds = [object, str, "float32", "complex128", bool, "string"]
        table[name] = table[name].astype(draw(st.sampled_from(kinds)))
    elif fault == "double" and len(table):
        return pd.concat([table.iloc[: row + 1], table.iloc[row:]])
    elif fault == "unordered":
        return table.iloc[::-1]
    elif fault == "column" and draw(st.booleans()):
        return table.drop(columns=name, errors="ignore")
    elif fault == "column":
        return table.rename(
            columns={name: draw(st.sampled_from(["Close", "x", "tick_volume", "mid_o", "trades", ""]))}
        )
    elif fault == "gap" and len(table):
        return table.drop(table.index[row])
    elif fault == "twice":
        return pd.concat([table, table[[column for column in list(table)[:1]]]], axis=1)
    return table


def with_odd_times(draw, table: pd.DataFrame, fault: str) -> pd.DataFrame:
    "The table with something wrong in its times."
    dated = isinstance(table.index, pd.DatetimeIndex)
    zoned = dated and table.index.tz is not None
    if fault == "naive" and zoned:
        table.index = table.index.tz_localize(None)
    elif fault == "unit" and dated:
        table.index = table.index.as_unit(draw(st.sampled_from(["s", "ms", "us"])))
    elif fault == "off grid" and dated:
        table.index = table.index + pd.Timedelta(draw(st.integers(1, 10**12)), "ns").floor("ms")
    elif fault == "no time":
        return table.reset_index(drop=True)
    elif fault == "zone" and zoned:
        table.index = table.index.tz_convert("Asia/Tokyo")
    elif fault == "name":
        table.index.name = draw(st.sampled_from([None, "time", "timestamp", "close", "x"]))
    return table


@st.composite
def odd_tables(draw) -> pd.DataFrame:
    "Candles with none, one or several things wrong: values, types, times, rows, columns."
    table = good(draw(st.sampled_from([0, 1, 2, 7, 30])))
    for fault in draw(st.lists(st.sampled_from([*VALUE_FAULTS, *TIME_FAULTS]), max_size=3)):
        name = draw(st.sampled_from(COLUMNS))
        row = draw(st.integers(0, len(table) - 1)) if len(table) else None
        if fault in TIME_FAULTS:
            table = with_odd_times(draw, table, fault)
        else:
            table = with_odd_values(draw, table, fault, name, row)
    return table


def is_valid(candles: pd.DataFrame, allow_gaps: bool = False) -> bool:
    "Written anew, from the contract, not from the code that is tested."
    times, step = candles.index, pd.Timedelta("5min")
    if not (
        candles.columns.is_unique
        and isinstance(times, pd.DatetimeIndex)
        and str(times.dtype) == "datetime64[ns, UTC]"
        and times.name == "open_time"
        and len(times)
    ):
        return False
    apart = np.diff(times)
    if not (
        (apart > pd.Timedelta(0)).all()
        and (times == times.floor("5min")).all()
        and (allow_gaps or (apart == step).all())
    ):
        return False
    prices = candles[list(PRICES)].to_numpy()
    return bool(
        all(candles[name].dtype == "float64" for name in COLUMNS)
        and np.isfinite(candles[COLUMNS].to_numpy()).all()
        and (prices > 0).all()
        and (candles["volume"] >= 0).all()
        and (candles["high"] == prices.max(axis=1)).all()
        and (candles["low"] == prices.min(axis=1)).all()
    )


@given(odd_tables(), st.booleans())
@thorough
def test_the_validator_passes_what_is_valid_and_nothing_else(table, allow_gaps):
    before = table.copy()
    try:
        seen = validate_candles(table, "5m", "SOURCE", allow_gaps)
    except UserError as error:
        assert "SOURCE" in str(error) and not (list(table) == COLUMNS and is_valid(table, allow_gaps))
    else:
        assert is_valid(seen, allow_gaps) and (seen is table or not is_valid(table, allow_gaps))
        if list(table) == COLUMNS:
            np.testing.assert_array_equal(seen.to_numpy(), table.astype(float).to_numpy())
        pd.testing.assert_frame_equal(table, before)


@given(odd_tables())
@thorough
def test_stored_candles_come_back_as_they_were_or_not_at_all(tmp_path, table):
    path = tmp_path / "stored.parquet"
    path.unlink(missing_ok=True)
    try:
        write_candles(table, path, "5m") if len(table) else write_table(table, path)
    except Exception:
        return  # what cannot be written is not what is tested here
    try:
        seen = read_candles(path)
    except UserError as error:
        assert str(path) in str(error)
    else:
        pd.testing.assert_frame_equal(
            seen, table, check_freq=False, check_dtype=False
        )  # text may come back as another type of text


WRITERS = {
    "parquet": lambda table, path: table.to_parquet(path),
    "csv": lambda table, path: table.to_csv(path),
    "columns": lambda table, path: table.reset_index().to_csv(path, index=False, sep="\t"),
    "feather": lambda table, path: table.reset_index().to_feather(path),
    "records": lambda table, path: path.write_text(
        table.reset_index().to_json(orient="records", date_format="iso")
    ),
    "rows": lambda table, path: path.write_text(
        json.dumps(
            [[1_704_067_200_000 + 300_000 * i, *row] for i, row in enumerate(table.to_numpy().tolist())]
        )
    ),
}


def a_table_or_an_error(path: Path, offset=None) -> pd.DataFrame | None:
    "The file's candles where it gives a table of the contract's form; None where it is refused by name."
    try:
        file = open_candle_file(path, offset)
    except UserError as error:
        assert path.name in str(error) and "\n" not in str(error) and len(str(error)) < 1000
        return None
    candles = file.candles
    assert (
        str(candles.index.dtype) == "datetime64[ns, UTC]"
        and candles.index.name == "open_time"
        and len(candles)
        and not candles.index.hasnans
    )
    assert set(COLUMNS) <= set(candles) <= set(VALUES) and (candles.dtypes == "float64").all()
    try:
        validate_candles(candles, "5m", str(path), allow_gaps=True)
    except CandleError as error:
        assert path.name in str(error)
    else:
        assert is_valid(candles, allow_gaps=True)
    return candles


@given(odd_tables(), st.sampled_from(list(WRITERS)), st.sampled_from([None, 0, 3, "new_york+7"]))
@thorough
def test_a_file_of_odd_candles_is_a_table_or_an_error(tmp_path, table, form, offset):
    path = tmp_path / "BTCUSDT_5m.anything"
    try:
        WRITERS[form](table, path)
    except (TypeError, ValueError, NotImplementedError, OverflowError):
        return  # the form cannot hold such a table
    seen = a_table_or_an_error(path, offset)
    if seen is not None:
        try:
            pd.testing.assert_frame_equal(
                join_candles({path.name: seen}),
                seen[~seen.index.duplicated()].sort_index()[list(join_candles({path.name: seen}))],
                check_freq=False,
            )
        except SourceError as error:
            assert path.name in str(error) and seen.index.has_duplicates


@pytest.mark.parametrize("form", list(WRITERS))
def test_good_candles_are_read_whole(tmp_path, form):
    "Else the test above would prove little."
    path = tmp_path / "BTCUSDT_5m.anything"
    WRITERS[form](good(30), path)
    pd.testing.assert_frame_equal(a_table_or_an_error(path), good(30), check_freq=False)


@given(st.sampled_from(list(WRITERS)), st.data())
@thorough
def test_a_damaged_file_is_a_table_or_an_error(tmp_path, form, data):
    path = tmp_path / "BTCUSDT_5m.anything"
    WRITERS[form](good(30), path)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    a_table_or_an_error(path)


@given(
    st.binary(max_size=300)
    | st.builds(
        bytes.__add__,
        st.sampled_from(
            [
                b"PAR1",
                b"PK\x03\x04",
                b"\x1f\x8b",
                b"ARROW1",
                b"FEA1",
                b"[",
                b"{",
                b"\xff\xfe",
                b"open_time,open,high,low,close,volume\n",
            ]
        ),
        st.binary(max_size=200),
    )
    | st.text(string.digits + ",.;\t\n-:eE+ ", max_size=200).map(str.encode)
)
@thorough
def test_no_bytes_do_harm(tmp_path, content):
    path = tmp_path / "BTCUSDT_5m.anything"
    path.write_bytes(content)
    a_table_or_an_error(path, 0)
    for reader in (read_candles, read_books, read_recorded_trades):
        with pytest.raises(UserError, match="BTCUSDT_5m"):
            reader(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=12)
        | st.dictionaries(
            st.sampled_from(
                [
                    "candles",
                    "time",
                    "mid",
                    "bid",
                    "o",
                    "h",
                    "l",
                    "c",
                    "volume",
                    "complete",
                    "open",
                    "high",
                    "low",
                    "close",
                    "date",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=30,
)


@given(json_values)
@thorough
def test_no_json_does_harm(tmp_path, value):
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(value))
    a_table_or_an_error(path, 0)


@given(
    st.lists(
        st.one_of(st.integers(), st.floats(), st.text(max_size=12), st.none(), st.datetimes(), st.booleans()),
        min_size=1,
        max_size=6,
    ),
    st.sampled_from([None, 0, -5.5, "new_york+7", "Europe/Athens"]),
)
@thorough
def test_times_are_utc_or_an_error(values, offset):
    try:
        seen = moments(pd.Series(values, name="when"), "SOURCE", offset)
    except UserError as error:
        assert "SOURCE" in str(error)
    else:
        assert str(seen.dtype) == "datetime64[ns, UTC]" and not seen.hasnans and len(seen) == len(values)


@given(st.text(max_size=12) | st.floats() | st.none() | st.integers())
@thorough
def test_an_offset_is_a_clock_or_an_error(offset):
    try:
        zone, ahead = clock_zone(offset)
    except SourceError:
        return
    assert isinstance(zone, str) and abs(ahead) <= pd.Timedelta("100000h")


@given(st.text(max_size=20))
@thorough
def test_any_name_is_a_name(text):
    symbol, timeframe = name_parts(text)
    assert symbol is None or symbol and plain_symbol(symbol)
    assert timeframe is None or pd.Timedelta(timeframe) >= pd.Timedelta(0)
