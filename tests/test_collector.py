"""The collector through the real clients, against stand-in servers on loopback."""

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from exchange_servers import BinanceServer, BybitServer, FaultSchedule, OandaServer

from smc_ml.candles import (
    TIMEFRAMES,
    CandleError,
    candle_facts,
    read_all_candles,
    read_candles,
    read_market,
    resample,
)
from smc_ml.config import ConfigError
from smc_ml.data.collection.collector import HistoricalDataCollector, collect
from smc_ml.data.collection.config import DataCollectionConfig
from smc_ml.data.collection.preparation import comparison_series, make_candles
from smc_ml.data.quality.assessment import assess_quality
from smc_ml.data.sources.config import RetryPolicy
from smc_ml.data.sources.exchanges import ExchangeSource
from smc_ml.data.sources.files import read_candle_file
from smc_ml.data.sources.names import SourceError
from smc_ml.data.sources.oanda import OandaSource

QUICK = RetryPolicy(first_wait=0.001, longest_wait=0.05, timeout=0.5, attempts=12)
EXCHANGES = {
    "binance perpetual": BinanceServer,
    "binance spot": BinanceServer,
    "bybit perpetual": BybitServer,
    "oanda": OandaServer,
}


def random_candles(days: int, seed: int = 0, start: str = "2024-01-01") -> pd.DataFrame:
    "Prices of two decimals that an exchange could have seen."
    random = np.random.default_rng(seed)
    close = (1000 + random.normal(size=288 * days).cumsum()).round(2)
    opened = np.r_[1000.0, close[:-1]]
    return pd.DataFrame(
        {
            "open": opened,
            "high": (np.maximum(opened, close) + random.random(len(close))).round(2),
            "low": (np.minimum(opened, close) - random.random(len(close))).round(2),
            "close": close,
            "volume": random.integers(1, 1000, len(close)).astype(float),
        },
        index=pd.date_range(start, periods=len(close), freq="5min", tz="UTC", unit="ns", name="open_time"),
    )


def tables(symbols: list[str], days: int = 5, base: str = "5m") -> dict[tuple[str, str], pd.DataFrame]:
    "Candles of every timeframe by symbol, the higher made from the base; `days`: of five-minute candles."
    served = {}
    for seed, symbol in enumerate(symbols):
        candles = random_candles(days, seed)
        times = pd.date_range("2024-01-01", periods=len(candles), freq=TIMEFRAMES[base], tz="UTC", unit="ns")
        candles.index = times.rename("open_time")
        served |= {
            (symbol, timeframe): candles if timeframe == base else resample(candles, base, timeframe)
            for timeframe in ("1m", "5m", "15m", "1h", "4h", "1d")
            if TIMEFRAMES[timeframe] >= TIMEFRAMES[base]
        }
    return served


def wish(folder: Path, name: str = "binance perpetual", **changes) -> DataCollectionConfig:
    exchange, _, market = name.partition(" ")
    settings = {
        "source": exchange,
        "symbols": ["EUR_USD"] if exchange == "oanda" else ["BTCUSDT"],
        "start": "2024-01-01",
        "end": "2024-01-05",
        "data_dir": str(folder),
        "timeframes": ["1h"],
        "kept_every": 300,
        "cross_check": False,
    }
    return DataCollectionConfig(**settings | ({"market": market} if market else {}) | changes)


def source(server, config: DataCollectionConfig):
    "The real client, at the stand-in and without the exchange's rate limit."
    if config.source == "oanda":
        return OandaSource(base_url=server.url, retry=QUICK)
    return ExchangeSource(config.source, config.market, server.url, QUICK, rate_limit=False)


def run(server, config: DataCollectionConfig) -> HistoricalDataCollector:
    collector = HistoricalDataCollector(config, source(server, config))
    collector.collect()
    return collector


def about_candles(server) -> list[dict[str, str]]:
    return [asked.query for asked in server.requests if asked.rows is not None]


def since(query: dict[str, str]) -> pd.Timestamp:
    "The first open time that a request asks for."
    value = float(next(query[name] for name in ("startTime", "start", "from") if name in query))
    return pd.Timestamp(int(value * (1000 if value < 1e11 else 1)), unit="ms", tz="UTC")


def raw(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))
    }


@pytest.fixture(autouse=True)
def token(monkeypatch) -> str:
    monkeypatch.setenv("OANDA_TOKEN", "a-secret-of-tests")
    return "a-secret-of-tests"


def server_of(name: str, token: str, candles, *arguments, **options):
    return EXCHANGES[name](candles, *arguments, **options, **({"token": token} if name == "oanda" else {}))


@pytest.mark.parametrize("name", EXCHANGES)
def test_the_stored_series_equals_the_served_one_and_is_asked_for_once(name, tmp_path, token):
    symbols = ["EUR_USD", "GBP_USD"] if name == "oanda" else ["BTCUSDT", "ETHUSDT"]
    config = wish(
        tmp_path, name, symbols=symbols, end=None, timeframes=["15m", "1h", "4h", "1d"], cross_check=True
    )
    with server_of(name, token, tables(symbols), page_limit=100) as server:
        collector, expected = run(server, config), {key: server.expected(*key) for key in tables(symbols)}
        summary = collector.get_collection_summary().droplevel("source")
        assert list(summary.index) == list(expected)
        for (symbol, timeframe), candles in expected.items():
            path = next(tmp_path.rglob(f"{symbol}_{timeframe}.parquet"))
            pd.testing.assert_frame_equal(read_candles(path), candles, check_freq=False)
            assert (
                candle_facts(path)["rows"]
                == len(candles)
                == summary.loc[(symbol, timeframe), "rows"]
                == summary.loc[(symbol, timeframe), "added"]
            )
        assert (
            (summary["gaps"] == 0).all()
            and (summary["disagreeing"] == 0).all()
            and (summary["compared"].drop(index="5m", level=1) > 0).all()
        )
        assert len(expected[symbols[0], "5m"]) == 5 * 288 - 1  # the last candle was still open
        before = raw(tmp_path)
        server.requests.clear()
        assert (run(server, config).get_collection_summary()["added"] == 0).all()
        last = {timeframe: table.index[-1] for (_, timeframe), table in expected.items()}
        assert all(since(query) > min(last.values()) for query in about_candles(server))
        server.requests.clear()
        run(server, wish(tmp_path, name, symbols=symbols, end="2024-01-05"))
        assert not server.requests and raw(tmp_path) == before  # a closed span: nobody is asked


@pytest.mark.parametrize("name", EXCHANGES)
@pytest.mark.parametrize("seed", range(3))
def test_faults_of_the_server_change_nothing_in_the_store(name, seed, tmp_path, token):
    symbol = "EUR_USD" if name == "oanda" else "BTCUSDT"
    with server_of(name, token, tables([symbol], 3), FaultSchedule(seed=seed), page_limit=60) as server:
        server.hang = 0.6
        config = wish(tmp_path, name, end="2024-01-03 12:00", kept_every=100)
        run(server, config)
        pd.testing.assert_frame_equal(
            read_candles(next(tmp_path.rglob(f"{symbol}_5m.parquet"))),
            server.expected(symbol, "5m", end=pd.Timestamp("2024-01-03 12:00", tz="UTC")),
            check_freq=False,
        )
        assert sum(asked.fault is not None for asked in server.requests) > 0


def test_a_changed_span_fetches_only_what_is_missing(tmp_path):
    with BinanceServer(tables(["BTCUSDT"], 8)) as server:
        run(server, wish(tmp_path, start="2024-01-03", end="2024-01-05"))
        for span, asked in (
            ({"start": "2024-01-02", "end": "2024-01-06"}, [("2024-01-02", 288), ("2024-01-05", 288)]),
            ({"start": "2024-01-03", "end": "2024-01-04"}, []),
            ({"start": "2024-01-02", "end": "2024-01-06"}, []),
            ({"start": "2024-01-05", "end": "2024-01-07"}, [("2024-01-06", 288)]),
        ):
            server.requests.clear()
            run(server, wish(tmp_path, **span))
            assert [
                (f"{since(request.query):%Y-%m-%d}", request.rows)
                for request in server.requests
                if request.rows is not None
            ] == asked
        stored = read_candles(next(tmp_path.rglob("BTCUSDT_5m.parquet")))
        pd.testing.assert_frame_equal(
            stored,
            server.expected(
                "BTCUSDT", "5m", pd.Timestamp("2024-01-02", tz="UTC"), pd.Timestamp("2024-01-07", tz="UTC")
            ),
            check_freq=False,
        )


def test_the_candles_of_a_shorter_span_are_cut_from_a_longer_snapshot(tmp_path):
    with BinanceServer(tables(["BTCUSDT"], 5)) as server:
        run(server, wish(tmp_path))
    shorter = wish(tmp_path, start="2024-01-02", end="2024-01-03")
    series = make_candles(collect(shorter), shorter, tmp_path / "candles")
    assert (
        len(series["BTCUSDT"]) == 288 and len(read_all_candles(tmp_path / "candles", "1h")["BTCUSDT"]) == 24
    )


def test_holes_of_the_exchange_are_asked_for_once_and_again_on_request(tmp_path):
    candles = tables(["BTCUSDT"], 5)
    candles["BTCUSDT", "5m"] = candles["BTCUSDT", "5m"].drop(
        candles["BTCUSDT", "5m"].index[[*range(300, 340), *range(700, 703)]]
    )
    config = wish(tmp_path, allow_gaps=True)
    with BinanceServer(candles) as server:
        summary = run(server, config).get_collection_summary()
        assert (summary["gaps"].item(), summary["missing"].item()) == (2, 43)
        server.requests.clear()
        run(server, config)
        assert not server.requests
        server.serve(candles=tables(["BTCUSDT"], 5))  # the exchange corrected its history
        run(server, config)
        assert not server.requests
        summary = run(server, wish(tmp_path, ask_again=True)).get_collection_summary()
        assert sorted({f"{since(query):%d %H:%M}" for query in about_candles(server)}) == [
            "02 01:00",
            "03 10:20",
        ]
        assert (summary["gaps"].item(), summary["added"].item()) == (0, 43)


def test_without_network_the_snapshot_serves_and_anything_else_is_one_sentence(tmp_path, caplog):
    with BinanceServer(tables(["BTCUSDT"], 5)) as server:
        run(server, wish(tmp_path))
    before = raw(tmp_path)
    assert run(server, wish(tmp_path)).get_collection_summary()["rows"].item() == 4 * 288
    with pytest.raises(SourceError, match="check the network connection") as failed:
        run(server, wish(tmp_path, end="2024-01-06"))
    assert "\n" not in str(failed.value)
    run(server, wish(tmp_path, end=None))
    assert "working from the snapshot as it is" in caplog.text
    with pytest.raises(SourceError, match="check the network connection"):
        run(server, wish(tmp_path, end=None, symbols=["BTCUSDT", "ETHUSDT"]))
    assert raw(tmp_path) == before


def test_what_cannot_be_collected_is_one_sentence_and_leaves_nothing(tmp_path, token, monkeypatch):
    with BinanceServer(tables(["BTCUSDT"], 5)) as server:
        for changes, error, words in (
            (
                {"symbols": ["BTCUSD"]},
                SourceError,
                "symbol 'BTCUSD' is unknown or delisted .similar: BTCUSDT",
            ),
            (
                {"start": "2031-01-01", "end": "2031-02-01"},
                ConfigError,
                "collect.start .2031-01-01. lies in the future",
            ),
            ({"end": "2031-02-01"}, ConfigError, "collect.end .2031-02-01. lies in the future"),
            ({"start": "2020-01-01", "end": "2020-02-01"}, SourceError, "has no candles from 2020-01-01"),
        ):
            with pytest.raises(error, match=words) as failed:
                run(server, wish(tmp_path, **changes))
            assert "\n" not in str(failed.value) and not raw(tmp_path)
    for changes, words in (
        ({"source": "kraken"}, "'binance', 'bybit' or 'oanda', found 'kraken'"),
        ({"timeframes": ["7m"]}, "7m is unknown"),
        ({"start": "2024-02-01"}, "must be before collect.end"),
    ):
        with pytest.raises(ConfigError, match=words):
            wish(tmp_path, **changes)
    with OandaServer(tables(["EUR_USD"], 5), token=token) as server:
        monkeypatch.setenv("OANDA_TOKEN", "another-secret")
        with pytest.raises(SourceError, match="token") as failed:
            run(server, wish(tmp_path, "oanda"))
        assert "another-secret" not in str(failed.value)
        monkeypatch.delenv("OANDA_TOKEN")
        with pytest.raises(SourceError, match="OANDA_TOKEN"):
            run(server, wish(tmp_path, "oanda"))
    assert not raw(tmp_path)


def test_no_token_in_the_store(tmp_path, token):
    with OandaServer(tables(["EUR_USD"], 5), token=token) as server:
        run(server, wish(tmp_path, "oanda"))
    assert raw(tmp_path) and not any(token.encode() in content for content in raw(tmp_path).values())


def test_an_impossible_candle_is_refused_by_name_or_stored_as_it_came(tmp_path):
    candles = tables(["BTCUSDT"], 5)
    candles["BTCUSDT", "5m"].iloc[100, 1] = 1.0
    with BinanceServer(candles) as server:
        with pytest.raises(
            CandleError, match="binance BTCUSDT 5m: column high is 1.0 at 2024-01-01 08:20:00"
        ):
            run(server, wish(tmp_path))
        assert "binance/BTCUSDT_5m.parquet" not in raw(tmp_path / "raw")
        mended = wish(tmp_path, validate=False, repair={"drop_impossible": True, "fill_up_to": 3})
        run(server, mended)
    assert read_candles(tmp_path / "raw/binance/BTCUSDT_5m.parquet")["high"].min() == 1.0
    series = make_candles(collect(mended), mended, tmp_path / "candles")["BTCUSDT"]
    assert len(series) == 4 * 288 and series["filled"].sum() == 1
    assert candle_facts(tmp_path / "candles/BTCUSDT_5m.parquet")["repairs"]["impossible_dropped"] == 1


def test_two_collectors_at_once_do_no_harm(tmp_path):
    symbols = ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
    with BinanceServer(tables(symbols, 5), page_limit=50) as server:
        alone, together = (
            wish(tmp_path / "alone", symbols=symbols),
            wish(tmp_path / "together", symbols=symbols),
        )
        run(server, alone)
        once = len(about_candles(server))
        server.requests.clear()
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(lambda config: run(server, config), [together, together]))
        assert raw(tmp_path / "together") == raw(tmp_path / "alone")
        assert len(about_candles(server)) == once  # what one fetched the other did not


async def in_a_loop(collector: HistoricalDataCollector):
    return collector.collect()


def test_the_synchronous_twin_works_with_and_without_a_running_loop(tmp_path):
    with BinanceServer(tables(["BTCUSDT"], 5)) as server:
        for place, work in (
            ("a", lambda c: c.collect()),
            ("b", lambda c: asyncio.run(in_a_loop(c))),
            ("c", lambda c: asyncio.run(c.collect_all_historical_data())),
        ):
            config = wish(tmp_path / place)
            assert work(HistoricalDataCollector(config, source(server, config))) == {
                "BTCUSDT": tmp_path / place / "raw/binance/BTCUSDT_5m.parquet"
            }
    assert raw(tmp_path / "a") == raw(tmp_path / "b") == raw(tmp_path / "c")


def test_higher_candles_that_disagree_are_counted_and_beyond_the_share_refused(tmp_path):
    candles = tables(["BTCUSDT"], 5)
    candles["BTCUSDT", "1h"].iloc[[3, 50], 3] += 0.01
    with BinanceServer(candles) as server:
        with pytest.raises(
            CandleError,
            match="BTCUSDT 1h: 2 of 96 candles disagree with those made from 5m candles, "
            "first column close at 2024-01-01 03:00",
        ):
            run(server, wish(tmp_path, cross_check=True))
        summary = run(
            server, wish(tmp_path, cross_check=True, cross_check_share=0.05)
        ).get_collection_summary()
    assert summary["disagreeing"].tolist() == [0, 2]


def test_a_market_too_young_for_a_higher_candle_is_compared_as_far_as_there_are_any(tmp_path):
    served = tables(["BTCUSDT"], 2)
    young = {
        key: table[table.index >= "2024-01-02"].iloc[:most]
        for key, table in served.items()
        if (most := {"5m": 72, "1h": 6, "1d": 1}.get(key[1]))
    }  # listed at midnight, now six o'clock
    with BinanceServer(young, now=pd.Timestamp("2024-01-02 06:00", tz="UTC")) as server:
        summary = run(
            server, wish(tmp_path, end=None, timeframes=["1h", "1d"], cross_check=True)
        ).get_collection_summary()
    assert summary.droplevel(["source", "symbol"])[["rows", "compared"]].to_dict("index") == {
        "5m": {"rows": 72, "compared": 0},
        "1h": {"rows": 6, "compared": 6},
    }


def test_resampled_candles_equal_a_recomputation_and_are_never_partial_at_the_ends(bitcoin, tmp_path):
    candles = bitcoin.iloc[7:6000].drop(bitcoin.index[[1000, 3000, 3001]])
    with BinanceServer({("BTCUSDT", "5m"): candles}) as server:
        config = wish(
            tmp_path,
            start=str(candles.index[0]),
            end=None,
            timeframes=["15m", "1h", "4h", "1d"],
            allow_gaps=True,
        )
        run(server, config)
        stored = server.expected("BTCUSDT", "5m")
    make_candles(
        collect(config.model_copy(update={"end": str(candles.index[-1])})), config, tmp_path / "candles"
    )
    for timeframe in config.timeframes:
        step = TIMEFRAMES[timeframe]
        expected = {}
        for opened, part in stored.groupby(stored.index.floor(step)):
            beyond = opened < stored.index[0] or opened + step > stored.index[-1] + TIMEFRAMES["5m"]
            if beyond or len(part) < config.complete_share * (step // TIMEFRAMES["5m"]):
                continue
            expected[opened] = [
                part["open"].iloc[0],
                part["high"].max(),
                part["low"].min(),
                part["close"].iloc[-1],
                part["volume"].sum(),
            ]
        expected = pd.DataFrame.from_dict(
            expected, orient="index", columns=["open", "high", "low", "close", "volume"]
        )
        made = read_all_candles(tmp_path / "candles", timeframe)["BTCUSDT"]
        np.testing.assert_array_equal(made.index, expected.index)
        np.testing.assert_allclose(made[expected.columns], expected, rtol=1e-12)


# several exchanges, and what comes beside the candles


def test_several_exchanges_are_collected_side_by_side_and_compared_with_each_other(tmp_path):
    served = tables(["BTCUSDT"], 5)
    odd = {key: table.copy() for key, table in served.items()}
    odd["BTCUSDT", "5m"].iloc[700, :4] *= 1.05
    with BinanceServer(served) as one, BybitServer(odd) as two:
        config = DataCollectionConfig(
            exchanges=["binance", "bybit"],
            symbols=["BTCUSDT"],
            start="2024-01-01",
            end="2024-01-05",
            timeframes=[],
            data_dir=str(tmp_path),
            base_url={"binance": one.url, "bybit": two.url},
        )
        collector = HistoricalDataCollector(config)
        assert collector.collect() == {"BTCUSDT": tmp_path / "raw/binance/BTCUSDT_5m.parquet"}
        summary = collector.get_collection_summary()
        assert (
            list(summary.index) == [("binance", "BTCUSDT", "5m"), ("bybit", "BTCUSDT", "5m")]
            and (summary["rows"] == 4 * 288).all()
            and "compared" not in summary
        )
        one.requests.clear()
        two.requests.clear()
        collector.collect()
        assert not one.requests and not two.requests
    name, other = comparison_series(config)["BTCUSDT"]
    report = assess_quality(
        read_candles(tmp_path / "raw/binance/BTCUSDT_5m.parquet"),
        "5m",
        other=other,
        name="BTCUSDT",
        other_name=name,
    )
    assert name == "BTCUSDT of bybit" and report.disagreements["time"].tolist() == [
        served["BTCUSDT", "5m"].index[700]
    ]


def test_an_exchange_that_fails_is_one_sentence_beside_one_that_does_not(tmp_path):
    with BinanceServer(tables(["BTCUSDT"], 5)) as one:
        config = DataCollectionConfig(
            exchanges=["binance", "bybit"],
            symbols=["BTCUSDT"],
            start="2024-01-01",
            end="2024-01-05",
            data_dir=str(tmp_path),
            base_url={"binance": one.url, "bybit": "http://127.0.0.1:9"},
            retry={"attempts": 2, "first_wait": 0.001, "longest_wait": 0.01, "timeout": 0.5},
        )
        with pytest.raises(SourceError, match="^bybit: .*check the network connection") as failed:
            collect(config)
        assert "\n" not in str(failed.value) and not list(tmp_path.rglob("*bybit*/*.parquet"))


def test_files_are_compared_with_an_exchange(tmp_path):
    served = tables(["BTCUSDT"], 5)
    served["BTCUSDT", "5m"].reset_index().to_csv(tmp_path / "BTCUSDT-5m.csv", index=False)
    with BybitServer(served) as server:
        config = DataCollectionConfig(
            source="files",
            files=str(tmp_path / "BTCUSDT-5m.csv"),
            exchanges=["bybit"],
            start="2024-01-01",
            end="2024-01-05",
            data_dir=str(tmp_path),
            base_url=server.url,
        )
        assert list(collect(config)) == ["BTCUSDT"]
    name, other = comparison_series(config)["BTCUSDT"]
    assert (name, len(other)) == ("BTCUSDT of bybit", 4 * 288)


@pytest.mark.parametrize("name", ["binance perpetual", "bybit perpetual"])
def test_funding_rates_are_kept_beside_the_candles_and_asked_for_once(name, tmp_path, token):
    rates = pd.Series(
        np.random.default_rng(0).normal(1e-4, 1e-4, 21).round(8),
        pd.date_range("2024-01-01", periods=21, freq="8h", tz="UTC", unit="ns"),
    )
    with server_of(name, token, tables(["BTCUSDT"], 7), funding={"BTCUSDT": rates}) as server:
        config = wish(tmp_path, name, funding=True)
        run(server, config)
        stored = read_candles(next(tmp_path.rglob("BTCUSDT_funding.parquet")))["funding_rate"]
        assert stored.index.equals(rates.index[:12]) and (stored.to_numpy() == rates.to_numpy()[:12]).all()
        before = raw(tmp_path)
        server.requests.clear()
        run(server, config)
        assert not server.requests and raw(tmp_path) == before
        run(server, wish(tmp_path, name, funding=True, end="2024-01-06"))
        assert len(read_candles(next(tmp_path.rglob("BTCUSDT_funding.parquet")))) == 15


def test_a_recorded_book_becomes_columns_of_its_candles(market, bitcoin, tmp_path):
    books, trades = (
        market / "l2" / f"BTCUSDT_perp_binance_20230404-05_{what}.parquet" for what in ("book10_1s", "trades")
    )
    bitcoin.loc["2023-04-04 20:00":"2023-04-05 04:00"].reset_index().to_feather(
        tmp_path / "BTCUSDT-5m.feather"
    )
    config = DataCollectionConfig(
        source="files",
        files={"BTCUSDT": str(tmp_path / "BTCUSDT-5m.feather")},
        books={"BTCUSDT": str(books)},
        trades={"BTCUSDT": str(trades)},
        data_dir=str(tmp_path),
        timeframes=["15m"],
    )
    candles = make_candles(collect(config), config, tmp_path / "candles")["BTCUSDT"]
    known = candles.dropna(subset="spread")
    assert (
        1 <= len(known) < len(candles)
        and (known["spread"] >= 0.1).all()
        and known["imbalance"].abs().lt(1).all()
        and known["signed_volume"].abs().le(known["volume"]).all()
    )
    assert {"spread", "imbalance", "depth", "signed_volume"} <= set(
        read_all_candles(tmp_path / "candles", "15m")["BTCUSDT"]
    )
    with pytest.raises(CandleError, match="the trades of .* sum to a volume of"):
        make_candles({"BTCUSDT": _doubled(tmp_path, config)}, config, tmp_path / "candles")


def _doubled(folder: Path, config: DataCollectionConfig) -> Path:
    "The same candles with twice the volume, as of another market."
    table = pd.read_feather(folder / "BTCUSDT-5m.feather")
    table.assign(volume=2 * table["volume"]).to_feather(folder / "BTCUSDT-5m.feather")
    return collect(config)["BTCUSDT"]


# any timeframe as base


@pytest.mark.parametrize("base, days, higher", [("1m", 5, "5m"), ("15m", 2, "1h"), ("1h", 1, "4h")])
@pytest.mark.parametrize("name", EXCHANGES)
def test_any_timeframe_is_a_base(name, base, days, higher, tmp_path, token):
    symbol = "EUR_USD" if name == "oanda" else "BTCUSDT"
    served = tables([symbol], days, base)
    config = wish(tmp_path, name, end=None, timeframe=base, timeframes=[higher, "1d"], cross_check=True)
    with server_of(name, token, served, FaultSchedule(seed=4, rate=0.2), page_limit=200) as server:
        server.hang = 0.6
        collector = run(server, config)
        expected = server.expected(symbol, base)
    assert list(collector.get_collection_summary().index.get_level_values("timeframe")) == [
        base,
        higher,
        "1d",
    ]
    assert collector.get_collection_summary()["disagreeing"].sum() == 0
    assert collector.get_collection_summary()["compared"].iloc[1] > 0
    path = next(tmp_path.rglob(f"{symbol}_{base}.parquet"))
    made = make_candles({symbol: path}, config, tmp_path / "candles")
    market = read_market(tmp_path / "candles")
    assert made.timeframe == market.timeframe == base
    pd.testing.assert_frame_equal(market[symbol], expected, check_freq=False)
    pd.testing.assert_frame_equal(
        read_market(tmp_path / "candles", higher)[symbol], resample(expected, base, higher), check_freq=False
    )
    assert candle_facts(tmp_path / f"candles/{symbol}_{higher}.parquet")["base"] == base


def through_the_stage(folder: Path, **settings):
    "The market that the collect stage writes for these files."
    config = DataCollectionConfig(source="files", data_dir=str(folder / "data"), **settings)
    collector = HistoricalDataCollector(config)
    make_candles(collector.collect(), config, folder / "candles")
    return collector.get_collection_summary(), read_market(folder / "candles")


def test_a_brokers_quarter_hours_are_a_base(market, euro, tmp_path):
    path = str(market / "EURUSD_15m_mt5_2022-10_2023-10.parquet")
    settings = {"files": path, "offset": "Europe/Athens", "calendar": "forex", "timeframe": "15m"}
    with pytest.raises(CandleError, match="candles are missing while the market was open"):
        through_the_stage(tmp_path, **settings)  # a Friday evening and some single quarters
    summary, candles = through_the_stage(tmp_path, **settings, allow_gaps=True)
    assert (candles.timeframe, list(candles)) == ("15m", ["EURUSD"])
    pd.testing.assert_frame_equal(candles["EURUSD"], euro, check_freq=False)
    assert summary["rows"].tolist() == [len(euro)] and 0 < summary["missing"].item() < 100
    for timeframe in ("1h", "4h", "1d"):
        higher = read_market(tmp_path / "candles", timeframe)["EURUSD"]
        own_days = resample(euro, "15m", timeframe, calendar="forex")
        pd.testing.assert_frame_equal(higher, own_days, check_freq=False)
    with pytest.raises(SourceError, match="no 5m candles .there are 15m of EURUSD.: .*set collect.timeframe"):
        through_the_stage(tmp_path, files=path, offset="Europe/Athens")


def test_hours_of_bitcoin_are_a_base(market, tmp_path):
    path = market / "BTCUSDT_1h_binance_spot_2020-01_2021-10.parquet"
    summary, candles = through_the_stage(
        tmp_path, files={"BTCUSDT": str(path)}, timeframe="1h", allow_gaps=True
    )
    assert candles.timeframe == "1h" and summary["rows"].tolist() == [16_049]
    pd.testing.assert_frame_equal(candles["BTCUSDT"], read_candle_file(path), check_freq=False)
    days = read_market(tmp_path / "candles", "1d")["BTCUSDT"]
    by_hand = candles["BTCUSDT"].groupby(candles["BTCUSDT"].index.floor("1D"))
    by_hand = by_hand.agg({"high": "max", "volume": "sum", "close": "count"}).query("close >= 0.9 * 24")
    np.testing.assert_array_equal(days.index, by_hand.index)
    np.testing.assert_allclose(days[["high", "volume"]], by_hand[["high", "volume"]], rtol=1e-12)


def test_minutes_are_a_base(tmp_path):
    minutes = tables(["BTCUSDT"], 5, "1m")["BTCUSDT", "1m"]
    minutes.to_csv(tmp_path / "BTCUSDT_1m.csv")
    files = str(tmp_path / "BTCUSDT_1m.csv")
    _, candles = through_the_stage(tmp_path, files=files, timeframe="1m", timeframes=["5m", "15m", "1h"])
    assert candles.timeframe == "1m"
    pd.testing.assert_frame_equal(candles["BTCUSDT"], minutes, check_freq=False)
    five = read_market(tmp_path / "candles", "5m")["BTCUSDT"]
    assert (len(five), five["volume"].sum()) == (288, minutes["volume"].sum())


def test_a_simulated_base_is_made_of_the_five_minute_market(tmp_path):
    settings = {"symbols": ["SIM-A"], "start": "2024-01-01", "end": "2024-01-08", "data_dir": str(tmp_path)}
    five, hours = (DataCollectionConfig(**settings, timeframe=base) for base in ("5m", "1h"))
    market = make_candles(collect(five), five, tmp_path / "five")
    long = make_candles(collect(hours), hours, tmp_path / "hours")
    pd.testing.assert_frame_equal(long["SIM-A"], market.at("1h")["SIM-A"], check_freq=False)
    assert read_market(tmp_path / "hours").timeframe == "1h"


def test_a_timeframe_that_cannot_be_is_one_sentence(tmp_path):
    for changes, words in (
        ({"timeframe": "7m"}, "collect.timeframe: 7m is unknown"),
        ({"timeframe": "2m"}, "collect.timeframe: binance has no 2m candles: give one of 1m, 3m, 5m"),
        ({"timeframe": "15m", "timeframes": ["20m"]}, "20m is no multiple of collect.timeframe .15m."),
    ):
        with pytest.raises(ConfigError, match=words) as failed:
            wish(tmp_path, **changes)
        assert "\n" not in str(failed.value)


def test_settings_and_collection_are_imported_without_the_clients():
    heavy = ["ccxt", "httpx", "aiohttp", "tenacity", "torch", "vectorbt", "plotly"]
    code = (
        "import sys, smc_ml.settings, smc_ml.data.collection.preparation\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip() == "[]", done.stdout + done.stderr
