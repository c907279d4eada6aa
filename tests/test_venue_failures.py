"""What exchanges answer on a bad day: failures that pass, markets that are gone, addresses that are refused.

And that the end of such a day is one sentence, the last one in the terminal.
"""

import asyncio
import json

import pandas as pd
import pytest
from aiohttp import web
from exchange_servers import BinanceServer, BybitServer, FaultSchedule, OandaServer, milliseconds

from smc_ml.candles import read_candles
from smc_ml.config import UserError
from smc_ml.data.collection.collector import HistoricalDataCollector, delisted_sentences
from smc_ml.data.collection.config import DataCollectionConfig
from smc_ml.data.collection.preparation import make_candles
from smc_ml.data.sources.config import RetryPolicy
from smc_ml.data.sources.exchanges import ExchangeSource
from smc_ml.data.sources.names import SourceError, UnknownMarket
from smc_ml.data.sources.oanda import TOKEN, OandaSource
from smc_ml.simulation.market import random_walk

SECRET = "0123456789abcdef-fedcba9876543210"
QUICK = {"attempts": 4, "first_wait": 0.001, "longest_wait": 0.02, "timeout": 1.0}
CANDLES = random_walk(900, seed=3)[["open", "high", "low", "close", "volume"]].round(5)
CANDLES["volume"] = CANDLES["volume"].round(3)
START, END = CANDLES.index[0], CANDLES.index[-1]
HTML = "<html><head><title>{}</title></head><body>\n<h1>{}</h1>\n</body></html>"
COUNTRY = "The Amazon CloudFront distribution is configured to block access from your country."


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv(TOKEN, SECRET)


class Scripted:
    "A stand-in server whose first `times` requests for candles are answered as the script says."

    script, times, ends, unlisted, status = (200, "{}"), 0, None, (), None

    def answer(self, request, asked):
        candles = self.about_candles(request.path)
        start = request.query.get("startTime") or request.query.get("start")
        gone = candles and self.ends is not None and start and int(start) > milliseconds(self.ends)
        if candles and (gone or (self.ends is None and self.times > 0)):
            self.times -= 1
            code, body = self.script
            kind = "text/html" if body.startswith("<") else "application/json"
            return web.Response(status=code, text=body, content_type=kind)
        return super().answer(request, asked)

    def listed(self, symbols: list) -> list:
        kept = [each for each in symbols if each.get("symbol", each.get("name")) not in self.unlisted]
        return [each | {"status": self.status} if self.status else each for each in kept]

    def exchange_info(self, spot):
        info = super().exchange_info(spot)
        return info | {"symbols": self.listed(info["symbols"])}

    def instruments(self, category, status):
        told = super().instruments(category, status)
        return told | {"list": self.listed(told["list"])}


class Binance(Scripted, BinanceServer):
    pass


class Bybit(Scripted, BybitServer):
    pass


class Oanda(Scripted, OandaServer):
    def __init__(self, candles, **options):
        named = {
            (symbol.replace("USDT", "_USD"), timeframe): table
            for (symbol, timeframe), table in candles.items()
        }
        super().__init__(named, token=SECRET, **options)


VENUES = {
    "binance": (
        Binance,
        "BTCUSDT",
        lambda url, retry: ExchangeSource("binance", "perpetual", url, retry, False),
    ),
    "binance spot": (
        Binance,
        "BTCUSDT",
        lambda url, retry: ExchangeSource("binance", "spot", url, retry, False),
    ),
    "bybit": (Bybit, "BTCUSDT", lambda url, retry: ExchangeSource("bybit", "perpetual", url, retry, False)),
    "oanda": (Oanda, "BTC_USD", lambda url, retry: OandaSource("practice", url, retry)),
}


def asked(venue: str, symbol: str | None = None, attempts: int = 4, **script) -> tuple[object, list]:
    "The candles or the sentence of a venue that answers as the script says, and the requests for candles."
    make, known, source = VENUES[venue]
    with make({("BTCUSDT", "5m"): CANDLES, ("ETHUSDT", "5m"): CANDLES}) as server:
        for name, value in script.items():
            setattr(server, name, value)

        async def drain():
            client = source(server.url, RetryPolicy(**QUICK | {"attempts": attempts}))
            try:
                return pd.concat([page async for page in client.pages(symbol or known, "5m", START, END)])
            finally:
                await client.close()

        try:
            found = asyncio.run(drain())
        except SourceError as error:
            found = error
            assert "\n" not in str(error) and SECRET not in str(error)
        return found, [each for each in server.requests if server.about_candles(each.path)]


def bybit(code: int, message: str) -> tuple[int, str]:
    return 200, json.dumps({"retCode": code, "retMsg": message, "result": {}, "retExtInfo": {}, "time": 1})


def binance(code: int, message: str, status: int = 400) -> tuple[int, str]:
    return status, json.dumps({"code": code, "msg": message})


def oanda(status: int, message: str) -> tuple[int, str]:
    return status, json.dumps({"errorMessage": message})


PASSING = [
    ("bybit", bybit(10016, "Internal System Error.")),
    ("bybit", bybit(10016, "Server error.")),
    ("bybit", bybit(10000, "Server Timeout")),
    ("bybit", bybit(10002, "The request time exceeds the time window range.")),
    ("bybit", bybit(10006, "Too many visits. Exceeded the API Rate Limit.")),
    ("bybit", bybit(10018, "Exceeded the IP Rate Limit.")),
    ("bybit", bybit(10019, "Service is restarting.")),
    ("bybit", bybit(10429, "System level frequency protection")),
    ("bybit", bybit(170007, "Timeout waiting for response from backend server.")),
    ("bybit", bybit(98765, "System busy, please try again later.")),
    ("bybit", (504, HTML.format("504", "Gateway Time-out"))),
    ("binance", binance(-1000, "An unknown error occurred while processing the request.")),
    ("binance", binance(-1001, "Internal error; unable to process your request. Please try again.")),
    ("binance", binance(-1003, "Too many requests; current limit is 2400 requests per minute.", 429)),
    ("binance", binance(-1003, "Way too much request weight used.")),
    ("binance", binance(-1004, "Server is busy, please wait and try again.")),
    ("binance", binance(-1006, "An unexpected response was received from the message bus.")),
    ("binance", binance(-1007, "Timeout waiting for response from backend server.", 408)),
    ("binance", binance(-1008, "Server is currently overloaded with other requests.", 503)),
    ("binance", binance(-1034, "Too many new connections.")),
    ("binance", binance(-4321, "Service temporarily unavailable.")),
    ("binance spot", binance(-1008, "Spot server is currently overloaded.", 503)),
    ("binance spot", binance(-1016, "System is under maintenance.", 503)),
    ("oanda", (503, HTML.format("503", "Service Temporarily Unavailable"))),
    ("oanda", oanda(429, "Rate limit exceeded")),
    ("oanda", oanda(500, "Internal error")),
    ("oanda", (408, "")),
    *((venue, (403, HTML.format("403 Forbidden", "Request blocked."))) for venue in VENUES),
    *((venue, (200, HTML.format("Just a moment...", "Checking your browser"))) for venue in VENUES),
    *((venue, (520, HTML.format("520", "Web server is returning an unknown error"))) for venue in VENUES),
]


@pytest.mark.parametrize(("venue", "script"), PASSING)
def test_a_failure_that_passes_is_asked_again(venue, script):
    found, requests = asked(venue, script=script, times=2)
    assert isinstance(found, pd.DataFrame), found
    assert len(found) == len(CANDLES) - 1 and len(requests) >= 3


@pytest.mark.parametrize(("venue", "script"), PASSING)
def test_a_failure_that_does_not_pass_is_a_sentence_with_symbol_venue_words_and_remedy(venue, script):
    found, requests = asked(venue, attempts=3, script=script, times=10**6)
    assert isinstance(found, SourceError) and len(requests) == 3
    name, symbol, said = VENUES[venue][2]("http://x", RetryPolicy()).name, VENUES[venue][1], str(found)
    assert said.startswith(f"{name} {symbol}: no usable answer in 3 attempts (the last one: "), said
    assert "collect again later" in said and "what is stored is kept" in said
    if script[1].startswith("{"):
        told = json.loads(script[1])
        words = told.get("retMsg") or told.get("msg")
        assert words is None or script[0] >= 408 or f"{words} (" in said, said
    assert ("another place" in said) == (script[0] == 403)


FINAL = [
    ("binance", (403, HTML.format("403", COUNTRY)), "another place"),
    ("bybit", (403, HTML.format("403 ERROR", COUNTRY)), "another place"),
    ("oanda", (403, HTML.format("403 ERROR", COUNTRY)), "another place"),
    ("binance", (451, ""), "another place"),
    (
        "binance",
        binance(0, "Service unavailable from a restricted location according to 'b. Eligibility'", 451),
        "another place",
    ),
    ("bybit", bybit(10009, "IP has been banned."), "another place"),
    ("bybit", bybit(10024, "Compliance rules triggered"), "another place"),
    ("oanda", oanda(403, "Insufficient authorization to perform request."), TOKEN),
    (
        "oanda",
        oanda(400, "Invalid value specified for 'granularity'"),
        "check instrument, timeframe and dates",
    ),
    ("bybit", bybit(10001, "Invalid period!"), "check symbol, timeframe and dates"),
    ("binance", binance(-1120, "Invalid interval."), "check symbol, timeframe and dates"),
]


@pytest.mark.parametrize(("venue", "script", "remedy"), FINAL)
def test_what_is_final_is_said_at_once(venue, script, remedy):
    found, requests = asked(venue, script=script, times=10**6)
    assert isinstance(found, SourceError) and len(requests) == 1
    assert remedy in str(found), found


UNKNOWN = [
    ("binance", binance(-1121, "Invalid symbol."), "Invalid symbol. (-1121)"),
    ("binance spot", binance(-1121, "Invalid symbol."), "Invalid symbol. (-1121)"),
    ("bybit", bybit(10001, "params error: symbol invalid"), "params error: symbol invalid (10001)"),
    ("bybit", bybit(10001, "Not supported symbols"), "Not supported symbols (10001)"),
    ("bybit", bybit(10029, "The requested symbol is invalid"), "(10029)"),
    ("oanda", oanda(400, "Invalid value specified for 'instrument'"), "specified for 'instrument'"),
]


@pytest.mark.parametrize(("venue", "script", "words"), UNKNOWN)
def test_a_market_that_the_server_does_not_know_is_named_as_such(venue, script, words):
    found, requests = asked(venue, script=script, times=10**6)
    assert isinstance(found, UnknownMarket) and len(requests) == 1
    said = str(found)
    assert VENUES[venue][1] in said and "unknown or delisted" in said and words in said, said


@pytest.mark.parametrize("venue", VENUES)
def test_a_market_that_is_not_listed_is_named_with_names_like_it(venue):
    wrong = {"oanda": "BTC_UDS"}.get(venue, "BTCUSTD")
    found, _ = asked(venue, symbol=wrong)
    assert isinstance(found, UnknownMarket)
    assert f"{wrong!r} is unknown or delisted (similar: {VENUES[venue][1]})" in str(found)


# a collection


def wish(server, folder, exchange="binance", **changes) -> DataCollectionConfig:
    settings = {
        "source": exchange,
        "symbols": ["BTCUSDT"],
        "start": str(START.date()),
        "timeframes": ["15m"],
        "data_dir": str(folder),
        "base_url": server.url,
        "retry": QUICK,
    }
    return DataCollectionConfig(**settings | changes)


def table_of(server) -> dict:
    fifteen = CANDLES.resample("15min").agg(
        {"open": "first", "high": "max", "low": "min", "close": "last", "volume": "sum"}
    )
    return {("BTCUSDT", "5m"): CANDLES, ("BTCUSDT", "15m"): fifteen.round({"volume": 3})}


LATER = END + pd.Timedelta(days=5)
GONE = [
    ("binance", "BREAK", None),
    ("binance", "SETTLING", binance(-1121, "Invalid symbol.")),
    ("bybit", "Closed", None),
    ("bybit", None, bybit(10001, "params error: symbol invalid")),
]


@pytest.mark.parametrize(("exchange", "status", "script"), GONE)
def test_what_a_market_traded_until_it_was_delisted_is_kept_and_the_time_said(
    tmp_path, exchange, status, script
):
    make = {"binance": Binance, "bybit": Bybit}[exchange]
    with make(table_of(make), now=LATER) as server:
        server.status = status
        if script:
            server.script, server.ends = script, END
        config = wish(server, tmp_path, exchange)
        paths = HistoricalDataCollector(config).collect()
        assert read_candles(paths["BTCUSDT"]).index.equals(CANDLES.index)
        (said,) = delisted_sentences(config)
        assert f"{exchange} BTCUSDT 5m: the market is not traded now" in said and str(END) in said
        assert (status if status and not script else "list" if script else "") in said
        assert len(make_candles(paths, config, tmp_path / "candles")["BTCUSDT"]) == len(CANDLES)


@pytest.mark.parametrize("exchange", ["binance", "bybit"])
def test_a_market_that_vanished_from_the_list_is_served_from_the_snapshot(tmp_path, exchange):
    make = {"binance": Binance, "bybit": Bybit}[exchange]
    with make(table_of(make), now=END + pd.Timedelta("5min")) as server:
        HistoricalDataCollector(wish(server, tmp_path, exchange)).collect()
        server.serve(now=LATER)
        server.unlisted = ("BTCUSDT",)
        config = wish(server, tmp_path, exchange)
        paths = HistoricalDataCollector(config).collect()
        assert read_candles(paths["BTCUSDT"]).index.equals(CANDLES.index)
        (said,) = delisted_sentences(config)
        assert "not in the exchange's list" in said and str(END) in said
        with pytest.raises(UnknownMarket, match="unknown or delisted"):
            HistoricalDataCollector(wish(server, tmp_path / "other", exchange)).collect()


def test_a_delisted_market_without_candles_in_the_span_is_named_as_such(tmp_path):
    with Binance(table_of(Binance), now=LATER) as server:
        server.status = "BREAK"
        config = wish(server, tmp_path, start=str((END + pd.Timedelta(days=3)).date()))
        with pytest.raises(SourceError, match=r"no candles from .* delisted: BREAK\): check"):
            HistoricalDataCollector(config).collect()


def test_a_listed_market_says_nothing_of_a_delisting(tmp_path):
    with Binance(table_of(Binance)) as server:
        config = wish(server, tmp_path)
        HistoricalDataCollector(config).collect()
        assert delisted_sentences(config) == []


def test_a_failure_of_one_series_carries_no_other_error(tmp_path):
    with Binance(table_of(Binance), FaultSchedule(2, 1.0, ("500",))) as server:
        with pytest.raises(UserError) as caught:
            HistoricalDataCollector(wish(server, tmp_path)).collect()
    assert (
        caught.value.__cause__ is None
        and caught.value.__context__ is None
        or caught.value.__suppress_context__
    )
    error: BaseException | None = caught.value
    while error is not None:
        assert not isinstance(error, BaseExceptionGroup)
        error = error.__context__
