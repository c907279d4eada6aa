"""Feeds of exchanges on loopback: whatever fails, the candles are the file's, or what is missing is said."""

import asyncio
import json
import os
import time
from typing import Any, NamedTuple

import ccxt.pro  # noqa: F401  a second that should not pass while a market's clock runs
import numpy as np
import pandas as pd
import pytest
from aiohttp import web
from conftest import MARKET
from exchange_servers import FaultSchedule, OandaServer
from streaming_servers import HeldClock, Script, StreamingServer

from smc_ml.config import UserError
from smc_ml.data.sources.config import RetryPolicy
from smc_ml.data.sources.names import SourceError
from smc_ml.data.sources.oanda import TOKEN
from smc_ml.live.config import LiveConfig
from smc_ml.live.feeds.interface import MarketClock
from smc_ml.live.feeds.live import ExchangeFeed, OandaFeed
from smc_ml.live.messages import ClosedCandles, Notice

QUICK = RetryPolicy(attempts=4, first_wait=0.01, longest_wait=0.05, timeout=2.0)
# of a market that runs 1,500 times faster
FAST = LiveConfig(close_wait=60.0, clock_skew=240.0, silence_limit=5.0)
SPEED, FIRST, LAST = 1500.0, 300, 344  # 200 ms a candle; the places of the candles that are played
SYMBOLS = ("BTCUSDT", "ETHUSDT")
STEP = pd.Timedelta("5min")
SECRET = "0123456789abcdef-fedcba9876543210"


class Played(NamedTuple):
    "What a feed gave, and what there was."

    given: list[ClosedCandles]
    expected: dict[str, pd.DataFrame]
    history: Any
    state: Any
    notices: list[Notice]
    connections: int

    @property
    def said(self) -> str:
        return " ".join(notice.what for notice in self.notices)


def cut(bitcoin: pd.DataFrame, ether: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    "Real candles of two perpetuals; one lacks three candles at the exchange itself."
    part, holes = slice(10_000, 10_000 + LAST), ether.index[10_000 + np.array([311, 336, 337])]
    return {("BTCUSDT", "5m"): bitcoin.iloc[part], ("ETHUSDT", "5m"): ether.iloc[part].drop(holes)}


def feed_of(server: StreamingServer, clock: MarketClock, **options) -> ExchangeFeed:
    urls = {"base_url": server.url, "stream_url": server.stream_url, "retry": QUICK, "rate_limit": False}
    options = {"symbols": SYMBOLS, "config": FAST} | urls | options
    return ExchangeFeed(server.exchange, **options, clock=clock)


async def taken(feed, last: pd.Timestamp, symbols=SYMBOLS, limit: float = 40.0) -> list[ClosedCandles]:
    "What a feed gives until all symbols have a close, then it is closed."
    given, here = [], set()
    async with feed, asyncio.timeout(limit):
        async for closed in feed:
            given.append(closed)
            here |= set(closed.candles) if closed.known_at >= last else set()
            if here >= set(symbols):
                break
    return given


async def play(
    exchange: str,
    tables,
    script: Script,
    starting: asyncio.Lock,
    last: int = LAST - 2,  # place of the candle that is open when the play ends
    speed: float = SPEED,
    ready: asyncio.Barrier | None = None,  # of plays that begin together
    change=None,  # what is done to the server when the feed has begun
    **options,
) -> Played:
    "A feed through a script."
    times = tables["BTCUSDT", "5m"].index
    server = {name: options.pop(name) for name in ("skew", "faults") if name in options}
    clock = HeldClock(times[FIRST] + pd.Timedelta("1min"), speed)
    options.setdefault("since", times[FIRST])
    with StreamingServer(exchange, tables, clock, script, **server) as stand_in:
        feed = feed_of(stand_in, clock, **options)
        async with starting:  # one after the other
            history = await feed.history(50)
            while len(stand_in.subscribed) < len(SYMBOLS):
                await asyncio.sleep(0.01)
        if ready is not None:
            await ready.wait()
        clock.go()
        if change is not None:
            change(stand_in)
        given = await taken(feed, times[last])
        state, notices = feed.state, feed.notices()
        expected = {symbol: stand_in.tables[symbol, "5m"] for symbol in SYMBOLS}
    return Played(given, expected, history, state, notices, stand_in.connections)


def table_of(given: list[ClosedCandles], symbol: str) -> pd.DataFrame:
    rows = [closed.candles[symbol] for closed in given if symbol in closed.candles]
    return pd.DataFrame(rows).set_index("open_time")


def check(played: Played, first: int = FIRST) -> list[pd.Timestamp]:
    "The candles are the exchange's, bit for bit, each once, in order; open times of those that are absent."
    closes, absent = [closed.known_at for closed in played.given], []
    assert closes == sorted(closes)
    for closed in played.given:
        assert all(row["open_time"] + STEP == closed.known_at for row in closed.candles.values())
    start = played.expected["BTCUSDT"].index[first]
    for symbol, whole in played.expected.items():
        table = table_of(played.given, symbol)
        served = whole[(whole.index >= start) & (whole.index <= table.index[-1])]
        lacking = served.index.difference(table.index)
        pd.testing.assert_frame_equal(table, served.drop(lacking), check_freq=False, check_exact=True)
        before = whole[whole.index < start].iloc[-50:]
        pd.testing.assert_frame_equal(played.history[symbol], before, check_freq=False, check_exact=True)
        absent.extend(lacking)
    return absent


def everything() -> Script:
    "One thing after the other goes wrong."
    return Script(
        drops={305, 306},
        refused=2,
        twice={303, 309, 310},
        late={312},
        lost={313, 314},
        wrong={316},
        nonsense={318},
        away=(330, 334),
        silent=(320, 328),
    )


def no_more_rest(server: StreamingServer) -> None:
    server.rest.faults = FaultSchedule(1, 1.0, ("500",), clock_offset=0.0)


async def broker(euro: pd.DataFrame) -> tuple[list[ClosedCandles], pd.DataFrame, Any, list[Notice]]:
    "A broker whose market is closed at a weekend and silent for an hour."
    clock = HeldClock(euro.index[100] + pd.Timedelta("30min"), 36_000.0)  # 100 ms a candle
    with OandaServer({("EUR_USD", "1h"): euro}, now=clock.now, token=SECRET) as server:
        config = LiveConfig(close_wait=360.0, clock_skew=3000.0)
        feed = OandaFeed(["EUR/USD"], "1h", config=config, retry=QUICK, base_url=server.url, clock=clock)
        first = await feed.history(30)
        clock.go()
        given = await taken(feed, euro.index[130], ["EUR/USD"])
        assert first["EUR/USD"].index[-1] < given[0].candles["EUR/USD"]["open_time"]
        return given, server.expected("EUR_USD", "1h"), feed.state, feed.notices()


VENUES = [(exchange, market) for exchange in ("binance", "bybit") for market in ("perpetual", "spot")]


@pytest.fixture(scope="module")
def plays(bitcoin, ether) -> dict[str, Any]:
    "All plays at once: most of their time is waiting."
    tables, starting = cut(bitcoin, ether), asyncio.Lock()
    whole = tables | {("ETHUSDT", "5m"): ether.iloc[10_000 : 10_000 + LAST]}
    times = tables["BTCUSDT", "5m"].index
    patient = FAST.model_copy(update={"clock_skew": 30.0, "close_wait": 20.0})
    begin = {"starting": starting, "ready": asyncio.Barrier(8)}
    late = {"since": times[100], "config": FAST.model_copy(update={"backfill_limit": 40})}
    work = {
        f"{exchange} {market}": play(exchange, tables, everything(), market=market, **begin)
        for exchange, market in VENUES
    }
    work |= {
        "skew": play("binance", whole, Script(), last=310, skew=1800.0, **begin),
        "no rest": play("bybit", whole, Script(lost={303}), last=310, change=no_more_rest, **begin),
        "early": play(
            "binance", whole, Script(early={301, 302}), last=304, speed=400.0, config=patient, **begin
        ),
        "long ago": play("bybit", whole, Script(), last=305, **late, **begin),
        "oanda": broker(broker_candles()),
    }

    async def all_at_once():
        os.environ[TOKEN] = SECRET
        try:
            return await asyncio.gather(*work.values(), return_exceptions=True)
        finally:
            os.environ.pop(TOKEN)

    return dict(zip(work, asyncio.run(all_at_once()), strict=True))


def broker_candles() -> pd.DataFrame:
    "Real hours of a broker around a weekend; two candles are taken out."
    table = pd.read_parquet(MARKET / "EUR_USD_H1_oanda_2020_2021.parquet").set_index("timestamp")
    table.index = table.index.as_unit("ns").rename("open_time")
    names = {f"mid_{name[0]}": name for name in ("open", "high", "low", "close")}
    table = table.rename(columns=names | {"bid_c": "bid", "ask_c": "ask"})
    table = table[["open", "high", "low", "close", "volume", "bid", "ask"]].astype(float)
    friday = table.index.searchsorted(pd.Timestamp("2020-02-07 09:00", tz="UTC"))
    table = table.iloc[friday - 100 : friday + 60]
    return table.drop(table.index[[105, 125]])


def result(plays: dict[str, Any], name: str) -> Any:
    if isinstance(plays[name], BaseException):
        raise plays[name]
    return plays[name]


def test_a_lost_connection_and_lost_candles_are_filled_from_the_history(bitcoin, ether):
    tables = cut(bitcoin, ether) | {("ETHUSDT", "5m"): ether.iloc[10_000 : 10_000 + LAST]}
    script = Script(drops={302}, lost={304})
    played = asyncio.run(play("binance", tables, script, asyncio.Lock(), last=306, speed=300.0))
    assert check(played) == [] and played.connections > 1


# the plays below run at 1,500 times the market's pace, which a busy machine cannot keep: with `make proofs`
@pytest.mark.slow
@pytest.mark.parametrize("venue", [" ".join(venue) for venue in VENUES])
def test_whatever_fails_the_candles_are_the_exchanges_to_the_bit(plays, venue):
    played = result(plays, venue)
    assert check(played) == []
    state, said = played.state, played.said
    assert state.missing == 3 and "ETHUSDT: a candle is missing" in said  # what the exchange lacks is said
    assert state.reconnects >= 2 and played.connections > 3 and not state.connected
    assert "the stream is lost" in said and "the stream is back" in said
    filled = sum(len(closed.candles) for closed in played.given if closed.filled)
    assert state.filled == filled > 3 and state.given == 2 * (LAST - 2 - FIRST) - 3


@pytest.mark.slow
def test_all_that_could_fail_did_and_was_said(plays):
    said = " ".join(result(plays, " ".join(venue)).said for venue in VENUES)
    for words in (
        "not a word for",
        "closing code 1006",
        "cannot be fetched (",
        "BTCUSDT: column high is",
    ):
        assert words in said, words


@pytest.mark.slow
def test_the_exchanges_clock_counts_and_a_wrong_one_is_said(plays):
    played = result(plays, "skew")
    assert check(played) == []
    assert abs(played.state.skew - 1800) < 900
    assert "our clock is 1800.0 s behind the exchange's: the exchange's counts" in played.said


@pytest.mark.slow
def test_without_rest_the_stream_goes_on_and_what_it_lacks_is_given_up_and_said(plays):
    played = result(plays, "no rest")
    absent, lost = check(played), played.expected["BTCUSDT"].index[303]
    assert sum(time == lost for time in absent) == 2 and len(absent) == played.state.missing < 8
    assert "cannot be fetched (" in played.said and "is missing from open_time" in played.said


@pytest.mark.slow
def test_a_candle_that_is_called_closed_while_it_is_open_is_not_believed(plays):
    played = result(plays, "early")
    assert check(played) == []
    assert played.state.refused >= 1 and "it is not" in played.said


@pytest.mark.slow
def test_a_start_too_long_ago_is_put_off_and_said(plays):
    played = result(plays, "long ago")
    assert check(played, 260) == []
    assert 260 <= played.expected["BTCUSDT"].index.get_loc(played.given[0].known_at - STEP) <= 270
    assert played.state.missing >= 155 and "beyond the limit of 40" in played.said
    assert all(closed.filled for closed in played.given[:30])


@pytest.mark.slow
def test_a_brokers_candles_come_at_their_closes_and_weekends_are_not_waited_for(plays):
    given, expected, state, notices = result(plays, "oanda")
    table = table_of(given, "EUR/USD")
    served = expected[(expected.index >= table.index[0]) & (expected.index <= table.index[-1])]
    pd.testing.assert_frame_equal(table, served, check_freq=False, check_exact=True)
    assert (table.index[1:] - table.index[:-1]).max() > pd.Timedelta("40h") and state.missing <= 4
    assert all(notice.level == "info" and SECRET not in notice.what for notice in notices)


class PriceServer:
    "A broker's price stream: falls silent, ends, is refused, and then goes on."

    def __init__(self, clock: MarketClock, account: str):
        self.clock, self.path, self.connections = clock, f"/v3/accounts/{account}/pricing/stream", 0

    def line(
        self, bid: float = 1.1, ask: float = 1.1002, instrument: str = "EUR_USD", ahead: str = "0s"
    ) -> str:
        time = self.clock.now() + pd.Timedelta(ahead)
        told = {"type": "PRICE", "instrument": instrument, "time": f"{time.value // 10**9}.000000000"}
        sides = {"bids": [{"price": f"{bid:.5f}"}], "asks": [{"price": f"{ask:.5f}"}], "tradeable": True}
        return json.dumps(told | sides)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        assert request.headers["Authorization"] == f"Bearer {SECRET}" and request.path == self.path
        assert request.query["instruments"] == "EUR_USD"
        self.connections += 1
        if self.connections == 3:
            return web.Response(status=503)
        response = web.StreamResponse()
        await response.prepare(request)
        wrong = (
            "{",
            "[]",
            self.line(1.2, 1.1),
            self.line(instrument="GBP_USD"),
            self.line(1.3, 1.4, ahead="9D"),
        )
        for line in wrong if self.connections == 1 else ():
            await response.write(f"{line}\n".encode())
        for _ in range(10_000 if self.connections > 3 else 10):
            await response.write(f'{{"type":"HEARTBEAT","time":"1.0"}}\n{self.line()}\n'.encode())
            await asyncio.sleep(0.02)
        if self.connections == 1:
            await asyncio.sleep(30)
        return response


async def priced(euro: pd.DataFrame) -> tuple[Any, ...]:
    "A broker's candles with its price stream beside them."
    clock = HeldClock(euro.index[100] + pd.Timedelta("30min"), 18_000.0)  # 200 ms a candle
    config = LiveConfig(close_wait=360.0, clock_skew=3000.0)
    prices = PriceServer(clock, OandaServer.account)
    app = web.Application()
    app.router.add_get("/{any:.*}", prices.handle)
    running = web.AppRunner(app, shutdown_timeout=0.1)
    await running.setup()
    site = web.TCPSite(running, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{running.addresses[0][1]}"
    with OandaServer({("EUR_USD", "1h"): euro}, now=clock.now, token=SECRET) as server:
        rules = {"config": config, "retry": QUICK, "base_url": server.url, "clock": clock}
        feed = OandaFeed(["EUR/USD"], "1h", **rules, stream_url=url, heartbeat_limit=0.3)
        await feed.history(5)
        clock.go()
        given = await taken(feed, euro.index[112], ["EUR/USD"])
        expected = server.expected("EUR_USD", "1h")
    await running.cleanup()
    return given, expected, feed, prices


def test_a_brokers_price_stream_tells_that_it_lives_and_makes_no_candle(market, monkeypatch):
    monkeypatch.setenv(TOKEN, SECRET)
    given, expected, feed, prices = asyncio.run(priced(broker_candles()))
    table, said = table_of(given, "EUR/USD"), " ".join(notice.what for notice in feed.notices())
    served = expected[(expected.index >= table.index[0]) & (expected.index <= table.index[-1])]
    pd.testing.assert_frame_equal(table, served, check_freq=False, check_exact=True)
    assert "not a word for 0.3 s" in said and "the stream is back" in said
    assert feed.state.reconnects >= 2 and prices.connections >= 4 and feed.state.refused == 5
    quote = feed.quotes["EUR/USD"]
    assert list(feed.quotes) == ["EUR/USD"] and (quote.bid, quote.ask, quote.tradeable) == (1.1, 1.1002, True)
    assert SECRET not in said


def test_waiting_may_be_broken_off_and_symbols_need_not_wait_for_each_other(bitcoin, ether):
    tables = cut(bitcoin, ether)
    tables["ETHUSDT", "5m"] = tables["ETHUSDT", "5m"].iloc[: FIRST + 2]
    times = tables["BTCUSDT", "5m"].index

    async def impatient():
        clock = HeldClock(times[FIRST] + pd.Timedelta("1min"), SPEED)
        with StreamingServer("binance", tables, clock, Script()) as server:
            given, broken_off = [], 0
            async with feed_of(server, clock, since=times[FIRST], max_batch_wait_ms=5.0) as feed:
                await feed.history(5)
                clock.go()
                while len(given) < 6:
                    try:
                        given.append(await asyncio.wait_for(anext(feed), 0.02))
                    except TimeoutError:
                        broken_off += 1
            with pytest.raises(StopAsyncIteration):
                await anext(feed)
            return given, broken_off

    given, broken_off = asyncio.run(asyncio.wait_for(impatient(), 30))
    table = table_of(given, "BTCUSDT")
    assert table.index.tolist() == times[FIRST : FIRST + len(table)].tolist() and broken_off > 5


@pytest.mark.slow
def test_the_loop_is_never_blocked_for_long(bitcoin, ether):
    tables = cut(bitcoin, ether)

    async def beside():
        gaps, begun = [], time.perf_counter()
        running = asyncio.ensure_future(
            play("binance", tables, Script(drops={302}), asyncio.Lock(), last=306)
        )
        while not running.done():
            await asyncio.sleep(0.001)
            now = time.process_time(), time.perf_counter()
            gaps.append(now)
        await running
        return np.diff([cpu for cpu, _ in gaps]), time.perf_counter() - begun

    processor, _ = asyncio.run(beside())
    assert np.sort(processor)[-3] < 0.25, processor.max()  # its own work; the server's threads are in it


def test_what_cannot_be_fed_is_refused_in_one_sentence(bitcoin, ether, monkeypatch):
    tables = cut(bitcoin, ether)
    with pytest.raises(UserError, match="give each once"):
        ExchangeFeed("binance", ["BTCUSDT", "BTCUSDT"])
    with pytest.raises(SourceError, match="timeframe '7m' is unknown"):
        ExchangeFeed("binance", ["BTCUSDT"], "7m")

    async def first(feed):
        async with feed:
            await asyncio.wait_for(anext(feed), 20)

    clock = MarketClock(tables["BTCUSDT", "5m"].index[FIRST])
    with StreamingServer("bybit", tables, clock) as server:
        with pytest.raises(SourceError, match=r"symbol 'BTCUSTD' is unknown or delisted.*similar: BTCUSDT"):
            asyncio.run(first(feed_of(server, clock, symbols=["BTCUSTD"])))
        with pytest.raises(UserError, match="BTCUSDT and BTC/USDT are one market"):
            asyncio.run(first(feed_of(server, clock, symbols=["BTCUSDT", "BTC/USDT"])))
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(SourceError, match=f"set the environment variable {TOKEN}"):
        asyncio.run(first(OandaFeed(["EUR_USD"], base_url="http://127.0.0.1:1", retry=QUICK)))
