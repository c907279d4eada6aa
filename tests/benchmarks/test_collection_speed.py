"""Candles per second from a server on loopback, beside ccxt's own loop over that server in the same run."""

import asyncio
import time

import pandas as pd
import pytest
from conftest import BTC, real_candles
from exchange_servers import BinanceServer, BybitServer

from smc_ml.data.sources.exchanges import ExchangeSource
from smc_ml.simulation.market import random_walk

ROUNDS = 3


@pytest.fixture(scope="module")
def year() -> pd.DataFrame:
    "A year of candles: real ones where they are at hand, a random walk elsewhere."
    return (
        real_candles(BTC)
        if BTC.exists()
        else random_walk(105_120, seed=0)[["open", "high", "low", "close", "volume"]]
    )


async def ours(exchange: str, url: str, candles: pd.DataFrame) -> tuple[float, int]:
    "Seconds and candles of one collection, connecting and loading of markets left out."
    source = ExchangeSource(exchange, "perpetual", url, rate_limit=False)
    try:
        await source.market_of("BTCUSDT")
        begin = time.perf_counter()
        table = pd.concat(
            [page async for page in source.pages("BTCUSDT", "5m", candles.index[0], candles.index[-1])]
        )
        return time.perf_counter() - begin, len(table)
    finally:
        await source.close()


async def plain(exchange: str, url: str, candles: pd.DataFrame) -> tuple[float, int]:
    "The loop that one writes first: ccxt's fetch_ohlcv from the last time on, and a table at the end."
    source = ExchangeSource(exchange, "perpetual", url, rate_limit=False)
    client, rows = source.client, []
    since, last = candles.index[0].value // 10**6, candles.index[-1].value // 10**6
    try:
        await client.load_markets()
        begin = time.perf_counter()
        while since < last:
            page = await client.fetch_ohlcv("BTC/USDT:USDT", "5m", since, 1000)
            rows, since = rows + [page], page[-1][0] + 300_000
        table = pd.DataFrame(
            [row for page in rows for row in page],
            columns=["open_time", "open", "high", "low", "close", "volume"],
        )
        table = table.set_index(pd.to_datetime(table.pop("open_time"), unit="ms", utc=True))
        return time.perf_counter() - begin, len(table)
    finally:
        await source.close()


@pytest.mark.parametrize(("exchange", "serve"), [("binance", BinanceServer), ("bybit", BybitServer)])
def test_collection_is_at_least_as_fast_as_ccxts_own_loop(benchmark, year, exchange, serve):
    benchmark.group, benchmark.name = "collection of a year from loopback", f"smc_ml, {exchange}"
    best = {}
    with serve({("BTCUSDT", "5m"): year}) as server:
        for _ in range(ROUNDS):  # turn by turn, so that a busy machine disturbs both
            for name, way in (("smc_ml", ours), ("ccxt", plain)):
                seconds, count = asyncio.run(way(exchange, server.url, year))
                assert count >= len(year) - 1
                best[name] = max(best.get(name, 0), count / seconds)
        benchmark.pedantic(lambda: asyncio.run(ours(exchange, server.url, year)), rounds=1)
    benchmark.extra_info |= {f"candles_per_second_{name}": round(rate) for name, rate in best.items()}
    print(f"\n{exchange}: " + ", ".join(f"{name} {rate:,.0f} candles/s" for name, rate in best.items()))
    if benchmark.enabled:
        assert best["smc_ml"] >= best["ccxt"]
