"""Real candle files are read as they are, and real candles written in every known form come back the same.

A broker's clock matches UTC; recorded books and trades match the candle.
"""

import asyncio
import gzip
import json
import zipfile

import numpy as np
import pandas as pd
import pytest
from conftest import BTC

from smc_ml.candles import PRICES, TIMEFRAMES, validate_candles
from smc_ml.data.sources.base import CandleSource
from smc_ml.data.sources.file_source import FileSource, join_candles
from smc_ml.data.sources.files import open_candle_file, read_candle_file
from smc_ml.data.sources.names import SourceError
from smc_ml.data.sources.order_book import (
    Books,
    Trades,
    add_order_book,
    book_candles,
    order_book_candles,
    read_books,
    read_recorded_trades,
    trade_candles,
)

EURO, OANDA = "EURUSD_15m_mt5_2022-10_2023-10.parquet", "EUR_USD_H1_oanda_2020_2021.parquet"
COLUMNS = [*PRICES, "volume"]


@pytest.mark.parametrize(
    "name, symbol, timeframe, rows",
    [
        (BTC.name, "BTCUSDT", "5m", 105_120),
        ("ETHUSDT_5m_binance_perp_2023.parquet", "ETHUSDT", "5m", 105_120),
        ("BTCUSDT_1h_binance_spot_2020-01_2021-10.parquet", "BTCUSDT", "1h", 16_049),
        ("gappy_SOLUSDT_5m_binance_perp_2024-03.parquet", "SOLUSDT", "5m", 8_203),
        (OANDA, "EURUSD", "1h", 12_455),
    ],
)
def test_real_files_read(market, name, symbol, timeframe, rows):
    file = open_candle_file(market / name)
    assert (file.symbol, file.timeframe, len(file.candles)) == (symbol, timeframe, rows)
    validate_candles(file.candles, timeframe, name, allow_gaps=True)


@pytest.mark.parametrize(
    "name, symbol, timeframe",
    [
        ("oanda_v3_instruments_instrument_candles.json", "DE30EUR", "5m"),
        ("binance_spot_klines_BTCUSDT_1d_2021-01-01.json", "BTCUSDT", "1d"),
        ("bybit_v5_market_kline_inverse_BTCUSD_60.json", "BTCUSD", "1h"),
    ],
)
def test_recorded_answers_read(market, name, symbol, timeframe):
    file = open_candle_file(market / "rest" / name)
    assert (file.symbol, file.timeframe) == (symbol, timeframe)
    validate_candles(file.candles.sort_index(), timeframe, name)


def test_an_inverse_contract_counts_dollars_and_its_volume_is_the_coins(market):
    file = open_candle_file(market / "rest" / "bybit_v5_market_kline_inverse_BTCUSD_60.json")
    assert file.facts["form"] == "Bybit inverse" and file.facts["order"] == "newest first"
    assert file.candles["volume"].iloc[0] == 15.74462667 and file.candles["quote_volume"].iloc[0] == 268611


def test_what_is_no_candle_file_is_refused_by_name(market):
    refused = [
        path
        for path in [
            *(market / "rest").iterdir(),
            *(market / "l2").iterdir(),
            *(market / "l2_raw").iterdir(),
            market / "README.md",
        ]
        if "candles" not in path.name and "_kline" not in path.name
    ]
    assert len(refused) > 20
    for path in refused:
        with pytest.raises(SourceError, match=path.name):
            open_candle_file(path)


def test_oanda_keeps_mid_bid_and_ask(market, tmp_path):
    file, table = open_candle_file(market / OANDA), pd.read_parquet(market / OANDA)
    for name, column in {
        "open": "mid_o",
        "high": "mid_h",
        "low": "mid_l",
        "close": "mid_c",
        "bid": "bid_c",
        "ask": "ask_c",
        "volume": "volume",
    }.items():
        assert (file.candles[name].to_numpy() == table[column]).all()
    assert (
        (file.candles["ask"] >= file.candles["bid"]).all()
        and file.facts["prices"] == "mid"
        and not file.facts["left_out"]
    )
    table.drop(columns=[f"mid_{price}" for price in "ohlc"]).to_parquet(tmp_path / "EUR_USD_H1.parquet")
    middle = open_candle_file(tmp_path / "EUR_USD_H1.parquet")
    assert (
        middle.facts["prices"] == "middle of bid and ask"
        and abs(middle.candles["close"].to_numpy() - table["mid_c"]).max() < 1.1e-5
    )


# A broker's clock


def test_a_brokers_times_are_refused_without_an_offset(market):
    with pytest.raises(
        SourceError,
        match=f"{EURO}: column timestamp_broker_naive has no time zone "
        ".first 2022-10-10 00:00:00.: give the offset",
    ):
        read_candle_file(market / EURO)


# this broker's, as the announcements below show;
# seven hours ahead of New York would be an hour off for three weeks
CLOCK = "Europe/Athens"
FED = pd.DatetimeIndex(
    [
        "2022-11-02 18:00",
        "2022-12-14 19:00",
        "2023-02-01 19:00",
        "2023-03-22 18:00",
        "2023-05-03 18:00",
        "2023-06-14 18:00",
        "2023-07-26 18:00",
        "2023-09-20 18:00",
    ],
    tz="UTC",
)


def test_a_brokers_times_match_utc(market, euro):
    file, table = open_candle_file(market / EURO, CLOCK), pd.read_parquet(market / EURO)
    assert (
        file.facts["volume"] == "tick_volume, for volume is zero throughout"
        and file.facts["left_out"] == ["volume", "spread"]
        and file.facts["offset"] == CLOCK
    )
    assert (file.candles["volume"].to_numpy() == table["tick_volume"]).all()
    ahead = table["timestamp_broker_naive"].to_numpy() - file.candles.index.tz_localize(None).to_numpy()
    winter = (file.candles.index >= "2022-10-30 01:00Z") & (
        file.candles.index < "2023-03-26 01:00Z"
    )  # Europe's, written out
    assert (ahead[winter] == np.timedelta64(2, "h")).all() and (
        ahead[~winter] == np.timedelta64(3, "h")
    ).all()
    apart = ((file.candles.index >= "2022-10-30") & (file.candles.index < "2022-11-06")) | (
        (file.candles.index >= "2023-03-12") & (file.candles.index < "2023-03-26")
    )  # New York's summer, Europe's winter
    pd.testing.assert_frame_equal(file.candles[~apart], euro[~apart], check_freq=False)
    validate_candles(file.candles, "15m", EURO, allow_gaps=True)


def surprise(candles, times):
    return (
        candles["volume"].loc[times].to_numpy() / candles["volume"].loc[times - TIMEFRAMES["15m"]].to_numpy()
    )


def test_the_market_moves_when_the_central_bank_speaks(market):
    "The Federal Reserve's eight decisions stand at the minute of their announcement, on no other clock."
    assert (surprise(read_candle_file(market / EURO, CLOCK), FED) > 2).all()
    for other in (2, 3, "new_york+7"):
        assert not (surprise(read_candle_file(market / EURO, other), FED) > 2).all()


def test_the_brokers_week_ends_with_new_yorks(market):
    times = read_candle_file(market / EURO, CLOCK).index
    gap = np.flatnonzero(np.diff(times) > pd.Timedelta("1D"))
    closes, opens = times[gap] + TIMEFRAMES["15m"], times[gap + 1]
    assert len(gap) == 51 and not (times.dayofweek == 5).any() and (closes.dayofweek == 4).all()
    assert ((closes.hour == 21) | (closes.hour == 22)).sum() == 50 and (
        closes.tz_convert("America/New_York").strftime("%H:%M") == "17:00"
    ).sum() == 50  # one Friday's last hours are not in the file
    assert (
        (opens.dayofweek == 6) & ((opens.hour == 21) | (opens.hour == 22))
    ).sum() == 49  # two weeks begin on a Monday, after Christmas and New Year
    for fixed, share in ((2, 0.4), (3, 0.6)):
        assert (
            abs((read_candle_file(market / EURO, fixed).index == times).mean() - share) < 0.05
        )  # fixed hours are right in a part of the year only


def test_the_brokers_hours_are_those_of_the_other_broker(market):
    "Both know EURUSD: the range by hour of the day has the same shape only with the right clock."
    here, there = read_candle_file(market / EURO, CLOCK), read_candle_file(market / OANDA)

    def shape(candles):
        summer = candles[candles.index.month.isin([6, 7, 8])]
        return np.log(summer["high"] / summer["low"]).groupby(summer.index.hour).mean().reindex(range(24))

    other = shape(there)
    likeness = {shift: pd.Series(np.roll(shape(here), shift)).corr(other) for shift in range(-6, 7)}
    assert max(likeness, key=likeness.get) == 0 and likeness[0] > 0.9


# Every form gives the same candles


@pytest.fixture(scope="module")
def some(bitcoin) -> pd.DataFrame:
    return bitcoin.iloc[40_000:42_000]


def rows_of(candles):
    return [
        [int(time.value // 10**6), *values]
        for time, values in zip(candles.index, candles[COLUMNS].to_numpy().tolist(), strict=True)
    ]


def archive(candles, unit=1):
    "Lines of Binance's public archive; `unit` 1 for milliseconds, 1000 for microseconds."
    return [
        ",".join(map(str, [unit * t, *prices, v, unit * (t + 300_000) - 1, v * 2, 7, v / 4, v / 2, 0]))
        for t, *prices, v in rows_of(candles)
    ]


HEADER = (
    "open_time,open,high,low,close,volume,close_time,"
    "quote_volume,count,taker_buy_volume,taker_buy_quote_volume,ignore"
)


def written_parquet(folder, how, candles):
    plain, times, path = candles.reset_index(drop=True), candles.index, folder / "BTCUSDT_5m.parquet"
    {
        "index": candles,
        "naive index": candles.tz_localize(None),
        "open_time": plain.assign(open_time=times.as_unit("us")),
        "seconds": plain.assign(timestamp=times.as_unit("s").astype("int64")),
    }[how].to_parquet(path)
    return path


def written_csv(folder, how, candles):
    plain, times, path = candles.reset_index(drop=True), candles.index, folder / "BTCUSDT_5m.csv"
    stamps = {
        "ISO": times.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "offset": times.tz_convert("Asia/Tokyo").astype(str),
        "naive": times.strftime("%Y-%m-%d %H:%M:%S"),
    } | {unit: times.as_unit(unit).astype("int64") for unit in ("s", "ms", "us", "ns")}
    plain.assign(Date=stamps[how]).to_csv(path, index=False)
    return path


def written_gzip(folder, how, candles):
    path = folder / "BTCUSDT_5m.csv.gz"
    counted = candles.reset_index(drop=True).assign(timestamp=candles.index.as_unit("ms").astype("int64"))
    path.write_bytes(gzip.compress(counted.to_csv(index=False).encode()))
    return path


def written_freqtrade(folder, how, candles):
    path = folder / f"BTC_USDT-5m.{how}"
    if how == "feather":
        dated = candles.reset_index(drop=True).assign(date=candles.index.as_unit("ms"))
        dated[["date", *COLUMNS]].to_feather(path)
    else:
        path.write_text(json.dumps(rows_of(candles)))
    return path


def written_archive(folder, how, candles):
    lines = [HEADER] * ("header" in how) + archive(candles, 1000 if "us" in how else 1)
    path = folder / "BTCUSDT-5m-2023-05.csv"
    path.write_text("\n".join(lines) + "\n")
    if "zip" not in how:
        return path
    with zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.write(path, path.name)
    return path.with_suffix(".zip")


def oanda_candle(time, values, volume, how):
    "A candle as OANDA answers it; bid and ask half a unit beside the mid price."
    return {
        "time": f"{time:%Y-%m-%dT%H:%M:%S}.000000000Z" if how == "RFC3339" else f"{time.timestamp():.9f}",
        "complete": True,
        "volume": volume,
        **{
            side: dict(zip("ohlc", (repr(value + move) for value in values), strict=True))
            for side, move in (("bid", -0.5), ("ask", 0.5))
        },
        "mid": dict(zip("ohlc", map(repr, values), strict=True)),
    }


def written_oanda(folder, how, candles):
    path = folder / "answer.json"
    told = [
        oanda_candle(time, values, volume, how)
        for time, (*values, volume) in zip(candles.index, candles[COLUMNS].to_numpy().tolist(), strict=True)
    ]
    path.write_text(json.dumps({"instrument": "BTC_USDT", "granularity": "M5", "candles": told}))
    return path


def brokers_times(candles):
    "What a clock seven hours ahead of New York showed."
    return candles.index.tz_convert("America/New_York").tz_localize(None) + pd.Timedelta(hours=7)


def written_mt4(folder, how, candles):
    path = folder / "BTCUSDT5.csv"
    path.write_text(
        "".join(
            f"{time:%Y.%m.%d},{time:%H:%M},{','.join(map(repr, values))}\r\n"
            for time, (_, *values) in zip(brokers_times(candles), rows_of(candles), strict=True)
        )
    )
    return path


def written_mt5(folder, how, candles):
    if how == "counted":  # what its Python package returns: seconds of the broker's clock since 1970
        path, counts = folder / "BTCUSDT_M5.parquet", brokers_times(candles).as_unit("s").astype("int64")
        plain = candles.reset_index(drop=True).rename(columns={"volume": "tick_volume"})
        plain.assign(time=counts, spread=20, real_volume=0).to_parquet(path)
        return path
    path = folder / "BTCUSDT_M5_202305190000_202305260000.csv"
    text = "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>\n" + "".join(
        "\t".join([f"{time:%Y.%m.%d}", f"{time:%H:%M:%S}", *map(repr, values), "0", "20\n"])
        for time, (_, *values) in zip(brokers_times(candles), rows_of(candles), strict=True)
    )
    path.write_bytes(text.encode("utf-16" if how == "UTF-16" else "utf-8"))
    return path


FILE_WRITERS = {
    "parquet": written_parquet,
    "csv": written_csv,
    "csv.gz": written_gzip,
    "freqtrade": written_freqtrade,
    "archive": written_archive,
    "OANDA": written_oanda,
    "MT4": written_mt4,
    "MT5": written_mt5,
}


def written(folder, form, candles):
    "The path of a file of that form with these candles."
    kind, _, how = form.partition(" ")
    return FILE_WRITERS[kind](folder, how, candles)


FORMS = [
    "parquet index",
    "parquet open_time",
    "parquet seconds",
    *(f"csv {how}" for how in ("ISO", "offset", "s", "ms", "us", "ns")),
    "csv.gz",
    "freqtrade feather",
    "freqtrade json",
    *(
        f"archive {how}"
        for how in (
            "ms",
            "ms header",
            "ms zip",
            "ms zip header",
            "us",
            "us header",
            "us zip",
            "us zip header",
        )
    ),
    "OANDA RFC3339",
    "OANDA UNIX",
]
NAIVE = ["parquet naive index", "csv naive"]
BROKER = ["MT4 csv", "MT5 csv", "MT5 UTF-16", "MT5 counted"]


@pytest.mark.parametrize("form", FORMS + NAIVE + BROKER)
def test_every_form_gives_the_same_candles(tmp_path, some, form):
    path = written(tmp_path, form, some)
    file = open_candle_file(path, "new_york+7" if form in BROKER else 0 if form in NAIVE else None)
    pd.testing.assert_frame_equal(file.candles[COLUMNS], some[COLUMNS], check_freq=False, check_exact=True)
    assert (file.symbol, file.timeframe) == ("BTCUSDT", "5m")
    validate_candles(file.candles, "5m", str(path))
    if form.startswith("archive"):
        assert (
            (file.candles["trades"] == 7).all()
            and (file.candles["taker_buy_volume"] == some["volume"] / 4).all()
            and (file.candles["quote_volume"] == some["volume"] * 2).all()
        )


@pytest.mark.parametrize("form", NAIVE + BROKER)
def test_a_clock_without_zone_is_refused(tmp_path, some, form):
    path = written(tmp_path, form, some)
    with pytest.raises(SourceError, match=f"{path.name}: .*give the offset"):
        open_candle_file(path)


def cut_files(folder, candles):
    for form in (
        "parquet index",
        "csv ISO",
        "csv.gz",
        "freqtrade feather",
        "freqtrade json",
        "archive ms",
        "archive ms zip",
        "OANDA RFC3339",
        "MT5 csv",
    ):
        yield form, written(folder, form, candles)


def test_cut_and_empty_files_are_refused_by_name(tmp_path, some):
    for form, path in cut_files(tmp_path, some.iloc[:200]):
        whole = path.read_bytes()
        for left in (0, 3, 40, len(whole) // 3, len(whole) - 13):
            path.write_bytes(whole[:left])
            try:
                candles = read_candle_file(path, 2)
            except SourceError as error:
                assert path.name in str(error)
            else:  # text cut within its last number cannot be told from whole text
                assert left > 40 and form in ("csv ISO", "archive ms", "MT5 csv"), (form, left)
                pd.testing.assert_frame_equal(
                    candles.iloc[:-1][COLUMNS],
                    some.iloc[: len(candles) - 1][COLUMNS].set_axis(candles.index[:-1]),
                )


# Several files


def collected(source, *wanted):
    async def run():
        return [page async for page in source.pages(*wanted)]

    return asyncio.run(run())


ALWAYS = pd.Timestamp("2000", tz="UTC"), pd.Timestamp("2100", tz="UTC")


def test_a_folder_of_old_downloads_is_one_series(tmp_path, some):
    parts = {
        "archive ms zip": some.iloc[:900],
        "freqtrade feather": some.iloc[800:1500],
        "parquet index": some.iloc[1400:],
    }
    for number, (form, part) in enumerate(parts.items()):
        (tmp_path / str(number)).mkdir()
        written(tmp_path / str(number), form, part)
    (tmp_path / "0" / "BTCUSDT-5m-2023-05.csv").unlink()
    source = FileSource(tmp_path)
    assert isinstance(source, CandleSource)
    (page,) = collected(source, "BTC/USDT:USDT", "5m", *ALWAYS)
    pd.testing.assert_frame_equal(page[COLUMNS], some[COLUMNS], check_freq=False, check_exact=True)
    assert [facts["form"] for facts in source.facts("BTCUSDT", "5m")] == ["Binance archive", "plain", "plain"]
    assert asyncio.run(source.now()) == some.index[-1] + TIMEFRAMES["5m"]
    (inner,) = collected(source, "BTCUSDT", "5m", some.index[100], some.index[200])
    assert inner.index.equals(some.index[100:200])
    assert collected(source, "BTCUSDT", "5m", some.index[-1] + TIMEFRAMES["5m"], ALWAYS[1]) == []
    with pytest.raises(SourceError, match="ETHUSDT: no 5m candles in the files .there are 5m of BTCUSDT."):
        collected(source, "ETHUSDT", "5m", *ALWAYS)


def test_downloads_that_differ_are_refused_with_time_and_both_names(tmp_path, some):
    written(tmp_path, "parquet index", some.iloc[:600])
    changed = some.iloc[500:].copy()
    changed.loc[changed.index[7], "close"] -= 0.1
    written(tmp_path, "freqtrade feather", changed)
    with pytest.raises(
        SourceError, match=rf"column close is .* at {str(changed.index[7])[:16]}.*BTC"
    ) as caught:
        collected(FileSource(tmp_path), "BTCUSDT", "5m", *ALWAYS)
    assert "BTC_USDT-5m.feather" in str(caught.value) and "BTCUSDT_5m.parquet" in str(caught.value)


def test_order_of_files_and_rows_does_not_matter(some):
    random = np.random.default_rng(5)
    for _ in range(10):
        starts = np.sort(random.integers(0, 1_900, 4))
        parts = {
            str(number): some.iloc[max(start - 60, 0) : stop].sample(frac=1, random_state=number)
            for number, (start, stop) in enumerate(zip([0, *starts], [*starts, len(some)], strict=True))
        }
        parts = {name: parts[name] for name in random.permutation(list(parts)) if len(parts[name])}
        pd.testing.assert_frame_equal(join_candles(parts), some, check_freq=False, check_exact=True)


# Books and trades

BOOK, TAPE = (
    "BTCUSDT_perp_binance_20230404-05_book10_1s.parquet",
    "BTCUSDT_perp_binance_20230404-05_trades.parquet",
)
OPEN = pd.Timestamp("2023-04-05 00:00", tz="UTC")


def test_recorded_trades_sum_to_the_candles_volume(market, bitcoin):
    measures = order_book_candles(
        read_books(market / "l2" / BOOK), read_recorded_trades(market / "l2" / TAPE), "5m"
    )
    assert list(measures.index) == [OPEN]  # the only candle recorded from open to close
    row = add_order_book(bitcoin, measures).loc[OPEN]
    assert (
        measures["volume"].iloc[0] == pytest.approx(row["volume"], rel=1e-12)
        and 0.0999 < row["spread"] < 0.11
        and -1 < row["imbalance"] < 1
        and row["depth"] > 0
    )
    raw = pd.read_parquet(market / "l2" / TAPE)
    raw = raw[(raw["ts"] >= OPEN) & (raw["ts"] < OPEN + TIMEFRAMES["5m"])]
    assert row["signed_volume"] == pytest.approx(
        raw["qty"].where(~raw["is_buyer_maker"], -raw["qty"])[raw["order_type"] == "MARKET"].sum()
    )
    assert (
        raw.loc[raw["order_type"] != "MARKET", "price"].max() > row["high"]
    )  # the one transfer lies far outside of the candle
    with pytest.raises(ValueError, match="sum to a volume of"):
        add_order_book(bitcoin.assign(volume=bitcoin["volume"] + 0.001), measures)


def test_recorded_minutes_equal_a_plain_loop(market):
    books, trades = read_books(market / "l2" / BOOK), read_recorded_trades(market / "l2" / TAPE)
    fast = order_book_candles(books, trades, "1m")
    assert len(fast) == 7 and fast.notna().all(axis=None)
    for open_time, row in fast.iterrows():
        close, held, sums = open_time + pd.Timedelta("1m"), 0.0, np.zeros(3)
        for i in np.flatnonzero((books.time >= open_time) & (books.time < close)):
            seconds = (
                min(close, books.time[i + 1], books.time[i] + pd.Timedelta("5s")) - books.time[i]
            ).total_seconds()
            bid, ask = books.bid_size[i].sum(), books.ask_size[i].sum()
            held, sums = (
                held + seconds,
                sums
                + seconds
                * np.array(
                    [books.ask_price[i, 0] - books.bid_price[i, 0], (bid - ask) / (bid + ask), bid + ask]
                ),
            )
        inside = (trades.time >= open_time) & (trades.time < close) & trades.in_market
        np.testing.assert_allclose(
            row[["spread", "imbalance", "depth", "volume", "signed_volume", "trades"]],
            [
                *(sums / held),
                trades.size[inside].sum(),
                (trades.size * trades.side)[inside].sum(),
                inside.sum(),
            ],
            rtol=1e-9,
        )


def test_recorded_minutes_do_not_know_what_comes(market):
    books, trades = read_books(market / "l2" / BOOK), read_recorded_trades(market / "l2" / TAPE)
    fast = order_book_candles(books, trades, "1m")
    for cut in books.time[::37][1:]:
        early = order_book_candles(
            Books(*(part[: books.time.searchsorted(cut, "right")] for part in books)),
            Trades(*(part[: trades.time.searchsorted(cut, "right")] for part in trades)),
            "1m",
        )
        pd.testing.assert_frame_equal(early, fast.iloc[: len(early)], check_freq=False)
        assert not len(early) or early.index[-1] + pd.Timedelta("1m") <= cut


def test_a_recording_with_a_hole_has_no_candle_there(market):
    books, trades = read_books(market / "l2" / BOOK), read_recorded_trades(market / "l2" / TAPE)
    hole = (books.time >= OPEN + pd.Timedelta("2m")) & (books.time < OPEN + pd.Timedelta("2m30s"))
    assert book_candles(Books(*(part[~hole] for part in books)), "1m")["spread"].isna().tolist() == [
        False,
        False,
        False,
        True,
        False,
        False,
        False,
    ]
    row = trades.time.searchsorted(OPEN + pd.Timedelta("70s"))
    lost = trades._replace(lost=np.where(np.arange(len(trades.lost)) == row, 1, trades.lost))
    assert trade_candles(lost, "1m")["volume"].isna().tolist() == [
        False,
        False,
        True,
        False,
        False,
        False,
        False,
    ]
