"""The clients of Binance, Bybit and OANDA against servers that refuse, break off and lie.

The collected series is the served one.
"""

import asyncio
import json
import logging

import numpy as np
import pandas as pd
import pytest
from conftest import MARKET
from exchange_servers import (
    BROKEN,
    FAULTS,
    LIES,
    REFUSALS,
    STEPS,
    BinanceServer,
    BybitServer,
    FaultSchedule,
    OandaServer,
)

from smc_ml.candles import PRICES, validate_candles
from smc_ml.data.sources import exchanges, oanda
from smc_ml.data.sources.config import RetryPolicy
from smc_ml.data.sources.exchanges import ExchangeSource
from smc_ml.data.sources.names import SourceError
from smc_ml.data.sources.oanda import TOKEN, OandaSource
from smc_ml.simulation.market import random_walk

SECRET = "0123456789abcdef-fedcba9876543210"
QUICK = RetryPolicy(attempts=12, first_wait=0.001, longest_wait=0.05, timeout=0.3)
VALUES = [*PRICES, "volume"]


def real(name: str, **renamed: str) -> pd.DataFrame:
    "A real file in the project's form; a random walk where the files are not at hand."
    if not MARKET.is_dir():
        return (
            random_walk(8000, seed=7)[VALUES].round(5).assign(volume=lambda table: table["volume"].round(3))
        )
    table = pd.read_parquet(MARKET / name).rename(columns=renamed).set_index("timestamp")
    table.index = table.index.as_unit("ns").rename("open_time")
    return table[[column for column in (*VALUES, "bid", "ask") if column in table]].astype(float)


ENDPOINTS = {  # server, source, symbol, timeframe, file
    "binance spot": (
        BinanceServer,
        lambda url, **more: ExchangeSource("binance", "spot", url, rate_limit=False, **more),
        "BTCUSDT",
        "1h",
        lambda: real("BTCUSDT_1h_binance_spot_2020-01_2021-10.parquet"),
    ),
    "binance perpetual": (
        BinanceServer,
        lambda url, **more: ExchangeSource("binance", "perpetual", url, rate_limit=False, **more),
        "BTCUSDT",
        "5m",
        lambda: real("BTCUSDT_5m_binance_perp_2023.parquet"),
    ),
    "bybit perpetual": (
        BybitServer,
        lambda url, **more: ExchangeSource("bybit", "perpetual", url, rate_limit=False, **more),
        "SOLUSDT",
        "5m",
        lambda: real("gappy_SOLUSDT_5m_binance_perp_2024-03.parquet"),
    ),
    "oanda": (
        OandaServer,
        lambda url, **more: OandaSource(base_url=url, **more),
        "EUR_USD",
        "1h",
        lambda: real(
            "EUR_USD_H1_oanda_2020_2021.parquet",
            mid_o="open",
            mid_h="high",
            mid_l="low",
            mid_c="close",
            bid_c="bid",
            ask_c="ask",
        ),
    ),
}


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv(TOKEN, SECRET)


def quiet_server(endpoint: str, candles: pd.DataFrame, faults: FaultSchedule | None = None, **options):
    server, _, symbol, timeframe, _ = ENDPOINTS[endpoint]
    if not MARKET.is_dir():
        candles.index = (
            pd.date_range("2023-01-01", periods=len(candles), freq=f"{STEPS[timeframe]}ms", tz="UTC")
            .as_unit("ns")
            .rename("open_time")
        )
    return server(
        {(symbol, timeframe): candles},
        faults,
        **options,
        **({"token": SECRET} if server is OandaServer else {}),
    )


async def drain(source, *asked) -> pd.DataFrame:
    "All pages, one after the other, as a store would get them."
    try:
        return pd.concat([page async for page in source.pages(*asked)])
    finally:
        await source.close()


def collect(endpoint: str, server, start, end, retry: RetryPolicy = QUICK) -> pd.DataFrame:
    _, source, symbol, timeframe, _ = ENDPOINTS[endpoint]
    return asyncio.run(drain(source(server.url, retry=retry), symbol, timeframe, start, end))


def sentence(endpoint: str, server, *asked, retry: RetryPolicy = QUICK) -> str:
    "What the user reads where a collection fails."
    with pytest.raises(SourceError) as caught:
        asyncio.run(drain(ENDPOINTS[endpoint][1](getattr(server, "url", server), retry=retry), *asked))
    assert "\n" not in str(caught.value) and SECRET not in str(caught.value)
    return str(caught.value)


# schedules of faults


def schedule(endpoint: str, candles: pd.DataFrame, server, seed: int) -> tuple[pd.Timestamp, pd.Timestamp]:
    "Serve a random part of the file with random faults, long ago or up to now; the span to ask for."
    generator, step = np.random.default_rng(seed), pd.Timedelta(milliseconds=STEPS[ENDPOINTS[endpoint][3]])
    begin, length = int(generator.integers(len(candles) - 900)), int(generator.integers(200, 900))
    part = candles.iloc[begin : begin + length]
    present, now = pd.Timestamp.now("UTC"), None
    if (
        seed % 3 == 0
    ):  # the last candle is open, and our clock and the server's may disagree on the one before
        part = part.set_axis(part.index + (present.floor(step) - part.index[-1]))
        now = present.floor(step) + pd.Timedelta(seconds=seed % 5 * 20)
    server.serve(
        {ENDPOINTS[endpoint][2:4]: part},
        FaultSchedule(seed, float(generator.uniform(0.05, 0.5))),
        now,
        page_limit=int(generator.integers(20, 150)),
    )
    early, late = (pd.Timedelta(minutes=int(minutes)) for minutes in generator.integers(-3000, 3000, 2))
    return min(part.index[0] - early, part.index[-3]), max(part.index[-1] + late, part.index[-2])


def run_schedules(endpoint: str, seeds: range) -> dict[str, int]:
    "Collect under every schedule; how many requests met which fault."
    candles, met = ENDPOINTS[endpoint][4](), {}
    with quiet_server(endpoint, candles.iloc[:10]) as server:
        for seed in seeds:
            start, end = schedule(endpoint, candles, server, seed)
            collected = collect(endpoint, server, start, end)
            pd.testing.assert_frame_equal(
                collected,
                server.expected(*ENDPOINTS[endpoint][2:4], start, end),
                check_freq=False,
                obj=f"{endpoint}, seed {seed}",
            )
            for asked in server.requests:
                met[asked.fault or "none"] = met.get(asked.fault or "none", 0) + 1
    return met


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_collected_series_is_the_served_one_under_50_schedules_of_faults(endpoint):
    met = run_schedules(endpoint, range(50))
    assert set(met) == {*FAULTS, "none"}, "a fault did not occur"


@pytest.mark.slow
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_collected_series_is_the_served_one_under_250_more_schedules(endpoint):
    run_schedules(endpoint, range(50, 300))


async def by_length(ask, start, stop, step, size, answers=3, tick=None):
    "The client that steps by the length of its page and believes every answer."
    since = start
    while since < stop:
        page = await ask(since, min(since + size * step, stop))
        if len(page):
            yield page
        since += size * step


PAGED = exchanges.paged


def without_asking_again(ask, start, stop, step, size, answers=3, tick=None):
    "The client that steps by time, but believes the first answer."
    return PAGED(ask, start, stop, step, size, 1, tick)


@pytest.mark.parametrize("broken", [by_length, without_asking_again])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_schedules_catch_a_client_that_loses_candles(endpoint, broken, monkeypatch):
    monkeypatch.setattr(oanda if endpoint == "oanda" else exchanges, "paged", broken)
    caught = 0
    for seed in range(100, 108):
        try:
            run_schedules(endpoint, range(seed, seed + 1))
        except (AssertionError, ValueError):
            caught += 1  # ValueError: not a single page
    assert caught >= 2


# the clock, the last candle, holes


@pytest.mark.parametrize("offset", [-60.0, 60.0])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_last_candle_is_closed_by_the_servers_clock(endpoint, offset):
    step = pd.Timedelta(milliseconds=STEPS[ENDPOINTS[endpoint][3]])
    candles = ENDPOINTS[endpoint][4]().iloc[:50]
    candles = candles.set_axis(
        pd.date_range(end=pd.Timestamp.now("UTC").floor(step), periods=50, freq=step)
        .as_unit("ns")
        .rename("open_time")
    )
    moment = candles.index[-1] + pd.Timedelta(
        seconds=30
    )  # half a minute into the last candle by a right clock
    with quiet_server(endpoint, candles, FaultSchedule(clock_offset=offset), now=moment) as server:
        collected = collect(endpoint, server, candles.index[0], candles.index[-1] + 5 * step)
    assert collected.index[-1] == candles.index[-3 if offset < 0 else -2]


def test_years_before_a_listing_cost_few_requests():
    candles = ENDPOINTS["bybit perpetual"][4]()
    with quiet_server("bybit perpetual", candles) as server:
        collected = collect(
            "bybit perpetual", server, candles.index[0] - pd.Timedelta(days=1500), candles.index[-1]
        )
        assert len(collected) == len(candles) - 1 and len(server.requests) < 100


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_what_is_collected_keeps_the_contract_of_candles(endpoint):
    candles = ENDPOINTS[endpoint][4]().iloc[:300]
    with quiet_server(endpoint, candles) as server:
        validate_candles(
            collect(endpoint, server, candles.index[0], candles.index[-1]),
            ENDPOINTS[endpoint][3],
            allow_gaps=True,
        )


# refusals


@pytest.mark.parametrize("status", ["429", "418"])
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_refusal_is_respected_by_all_requests(endpoint, status):
    _, source, symbol, timeframe, _ = ENDPOINTS[endpoint]
    candles = ENDPOINTS[endpoint][4]().iloc[:300]

    async def both(url):
        one = source(url, retry=RetryPolicy(attempts=20, first_wait=0.001, longest_wait=1.0, timeout=5.0))

        async def all_pages():
            return pd.concat(
                [page async for page in one.pages(symbol, timeframe, candles.index[0], candles.index[-1])]
            )

        try:
            return await asyncio.gather(all_pages(), all_pages())
        finally:
            await one.close()

    with quiet_server(
        endpoint,
        candles,
        FaultSchedule(11, 0.05, (status,), retry_after=0.25, clock_offset=0.0),
        page_limit=5,
    ) as server:
        for collected in asyncio.run(both(server.url)):
            assert len(collected) == 299
        refused = [asked.at for asked in server.requests if asked.fault]
        under_way = [
            sum(refusal < asked.at < refusal + 0.22 for asked in server.requests) for refusal in refused
        ]
        assert refused and max(under_way) <= 2  # the other's, and its next where its answer was read first


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("kinds", [REFUSALS, BROKEN])
def test_a_server_that_never_recovers_ends_the_collection_with_a_sentence(endpoint, kinds):
    candles = ENDPOINTS[endpoint][4]().iloc[:300]
    with quiet_server(endpoint, candles, FaultSchedule(2, 1.0, kinds)) as server:
        text = sentence(
            endpoint,
            server,
            *ENDPOINTS[endpoint][2:4],
            candles.index[0],
            candles.index[-1],
            retry=RetryPolicy(attempts=3, first_wait=0.001, timeout=0.2),
        )
    assert "no usable answer in 3 attempts" in text and "collect again later; what is stored is kept" in text


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_server_that_bans_for_an_hour_is_left_alone(endpoint):
    candles = ENDPOINTS[endpoint][4]().iloc[:300]
    with quiet_server(endpoint, candles, FaultSchedule(2, 1.0, ("418",), retry_after=3600.0)) as server:
        assert "asks to be left alone for 3600 s" in sentence(
            endpoint, server, *ENDPOINTS[endpoint][2:4], candles.index[0], candles.index[-1]
        )
        assert len(server.requests) == 1 or (
            endpoint.startswith("bybit") and len(server.requests) == 2
        )  # ccxt asks for Bybit's instruments in two requests at once


def test_the_exchanges_own_rate_limit_is_kept():
    candles = ENDPOINTS["binance perpetual"][4]().iloc[:450]
    with quiet_server("binance perpetual", candles, page_limit=50) as server:
        source = ExchangeSource("binance", base_url=server.url, retry=QUICK)
        asyncio.run(drain(source, "BTCUSDT", "5m", candles.index[0], candles.index[-1]))
        pages = [asked.at for asked in server.requests if asked.path.endswith("klines")]
    assert (
        len(pages) == 9 and np.diff(pages)[:-1].min() > 0.08
    )  # a request of 100 to 499 candles has weight 2, the last and short one 1; ccxt keeps 50 ms for each


# what the user does wrong


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_bad_input_is_answered_in_one_sentence(endpoint):
    _, _, symbol, timeframe, read = ENDPOINTS[endpoint]
    candles = read().iloc[:300]
    start, end = candles.index[0], candles.index[-1]
    with quiet_server(endpoint, candles) as server:
        assert f"(similar: {symbol})" in sentence(
            endpoint, server, symbol[:-2] + symbol[-1] + symbol[-2], timeframe, start, end
        )
        assert "is unknown" in sentence(endpoint, server, "NOTHING", timeframe, start, end)
        known = "1m, 2m, 4m, 5m, 10m, 15m" if endpoint == "oanda" else "1m, 3m, 5m, 15m, 30m, 1h"
        assert f"give one of {known}" in sentence(endpoint, server, symbol, "7m", start, end)
        assert "give a start before the end" in sentence(endpoint, server, symbol, timeframe, end, start)
        assert "give a start in the past" in sentence(
            endpoint, server, symbol, timeframe, end + pd.Timedelta(days=90), end + pd.Timedelta(days=91)
        )
        if endpoint != "oanda":
            assert "check the base URL" in sentence(
                endpoint, server.url + "/elsewhere", symbol, timeframe, start, end
            )
    assert "check the network connection" in sentence(
        endpoint, server.url, symbol, timeframe, start, end
    )  # nobody listens any more


def test_a_missing_or_wrong_token_is_a_sentence(monkeypatch):
    candles = ENDPOINTS["oanda"][4]().iloc[:300]
    asked = "EUR_USD", "1h", candles.index[0], candles.index[-1]
    with quiet_server("oanda", candles) as server:
        server.token = "of somebody else"
        assert "refuses the token" in sentence("oanda", server, *asked)
        monkeypatch.delenv(TOKEN)
        assert f"set the environment variable {TOKEN}" in sentence("oanda", server, *asked)


def test_the_token_is_in_no_log_error_representation_or_table(caplog):
    candles = ENDPOINTS["oanda"][4]().iloc[:300]
    caplog.set_level(logging.DEBUG)

    async def everything(server):
        source = OandaSource(base_url=server.url, retry=QUICK)
        table = pd.concat(
            [page async for page in source.pages("EUR_USD", "1h", candles.index[0], candles.index[-1])]
        )
        told = [
            repr(source),
            repr(source.__dict__),
            repr(source._opened.__dict__),
            repr(table.attrs),
            table.to_json(),
        ]
        server.serve(faults=FaultSchedule(2, 1.0, ("cut", "500", "429", "truncated")))
        for wrong in ({}, {"count": "many"}):
            try:
                await source.ask(
                    "/v3/instruments/EUR_USD/candles", lambda response: response.json()[SECRET], **wrong
                )
            except SourceError as error:
                told += [
                    str(error),
                    repr(error),
                    repr(error.__dict__),
                    repr(error.__context__),
                    repr(error.__cause__),
                ]
        await source.close()
        return told

    with quiet_server("oanda", candles, FaultSchedule(4, 0.5)) as server:
        told = asyncio.run(everything(server))
    assert len(told) > 10 and caplog.text and not any(SECRET in text for text in (*told, caplog.text))


# on request: funding rates and order books


@pytest.mark.parametrize("exchange", ["binance", "bybit"])
def test_funding_rates_arrive_whole_under_faults(exchange):
    rates = pd.Series(
        np.random.default_rng(0).normal(1e-4, 1e-4, 900).round(8),
        pd.date_range("2023-01-01", periods=900, freq="8h", tz="UTC") + pd.Timedelta("3ms"),
    )
    for seed in range(10):
        serve = {"binance": BinanceServer, "bybit": BybitServer}[exchange]
        candles = ENDPOINTS["binance perpetual"][4]().iloc[:10]
        with serve(
            {("BTCUSDT", "5m"): candles},
            FaultSchedule(seed, 0.3),
            now=rates.index[850],
            funding={"BTCUSDT": rates},
            page_limit=90,
        ) as server:

            async def ask():
                source = ExchangeSource(exchange, "perpetual", server.url, QUICK, rate_limit=False)
                try:
                    return await source.funding(
                        "BTCUSDT", rates.index[5], rates.index[-1] + pd.Timedelta(days=3)
                    )
                finally:
                    await source.close()

            collected = asyncio.run(ask())["funding_rate"]
            served = rates.iloc[5:][rates.index[5:] < server.now()]
            assert collected.index.equals(served.index) and (collected.to_numpy() == served.to_numpy()).all()


@pytest.mark.parametrize(
    ("exchange", "market_kind"),
    [("binance", "spot"), ("binance", "perpetual"), ("bybit", "spot"), ("bybit", "perpetual")],
)
def test_an_order_book_snapshot_is_the_recorded_one(market, exchange, market_kind):
    recorded = json.loads((market / "rest" / "binance_usdm_depth_BTCUSDT_20230404.json").read_text())
    sides = [[(float(price), float(size)) for price, size in recorded[side]] for side in ("bids", "asks")]
    serve = {"binance": BinanceServer, "bybit": BybitServer}[exchange]
    with serve(
        {("BTCUSDT", "5m"): ENDPOINTS["binance perpetual"][4]().iloc[:10]},
        FaultSchedule(1, 0.4),
        books={"BTCUSDT": sides},
    ) as server:

        async def ask():
            source = ExchangeSource(exchange, market_kind, server.url, QUICK, rate_limit=False)
            try:
                return await source.order_book("BTCUSDT", 10)
            finally:
                await source.close()

        book = asyncio.run(ask())
    for side, levels in zip(("bid", "ask"), sides, strict=True):
        for level in range(10):
            assert (book[f"{side}_px_{level + 1}"].iloc[0], book[f"{side}_sz_{level + 1}"].iloc[0]) == levels[
                level
            ]


# the stand-in servers themselves


def shape(value, names: bool = False):
    "Types of an answer; a list of lists or dicts by its first member, a list of names by their kinds."
    if isinstance(value, dict):
        return {name: shape(inner, True) for name, inner in sorted(value.items())}
    if isinstance(value, list):
        if names and value and all(isinstance(inner, (str, int)) for inner in value):
            return sorted({type(inner).__name__ for inner in value})
        return (
            [shape(inner) for inner in value]
            if value and not isinstance(value[0], (list, dict))
            else [shape(inner) for inner in value[:1]]
        )
    return type(value).__name__


def served(server, path: str) -> object:
    import httpx

    return httpx.get(server.url + path, headers={"Authorization": f"Bearer {SECRET}"}, trust_env=False).json()


def without(value: dict, *names: str) -> dict:
    return {name: inner for name, inner in value.items() if name not in names}


def test_the_servers_answer_in_the_recorded_shapes(market):
    def recorded(name):
        return json.loads((market / "rest" / f"{name}.json").read_text())

    bitcoin = ENDPOINTS["binance perpetual"][4]().iloc[:300]
    book = {"BTCUSDT": ([(100.0, 1.0)], [(101.0, 2.0)])}
    with BinanceServer({("BTCUSDT", "5m"): bitcoin, ("ETHUSDT", "5m"): bitcoin}, books=book) as server:
        assert shape(served(server, "/api/v3/klines?symbol=BTCUSDT&interval=5m")) == shape(
            recorded("binance_spot_klines_BTCUSDT_1d_2021-01-01")
        )
        for path, name in (
            ("/api/v3", "binance_spot_depth_NKNUSDT_1633998512"),
            ("/fapi/v1", "binance_usdm_depth_BTCUSDT_20230404"),
        ):
            assert shape(served(server, f"{path}/depth?symbol=BTCUSDT")) == shape(recorded(name))
        for path, name in (
            ("/api/v3", "binance_spot_exchangeInfo_trimmed"),
            ("/fapi/v1", "binance_futures_exchangeInfo_trimmed"),
        ):
            ours, theirs = served(server, f"{path}/exchangeInfo"), recorded(name)
            assert shape(without(ours, "symbols")) == shape(without(theirs, "symbols"))
            same, (mine, other) = (
                shape(without(ours["symbols"][0], "filters")),
                (ours["symbols"][0], theirs["symbols"][0]),
            )
            assert same == shape(without(other, "filters"))
            filters = {rule["filterType"]: shape(rule) for rule in other["filters"]}
            assert all(shape(rule) == filters[rule["filterType"]] for rule in mine["filters"])
    with BybitServer({("BTCUSDT", "5m"): bitcoin}, books=book) as server:
        for path, name in (
            ("kline?category=linear&symbol=BTCUSDT&interval=5", "kline_inverse_BTCUSD_60"),
            ("orderbook?category=linear&symbol=BTCUSDT", "orderbook_option"),
            ("instruments-info?category=spot", "instruments-info_spot_BTCUSDT"),
        ):
            assert shape(served(server, f"/v5/market/{path}")) == shape(recorded(f"bybit_v5_market_{name}"))
        times = [
            int(row[0])
            for row in served(server, "/v5/market/kline?category=linear&symbol=BTCUSDT&interval=5")["result"][
                "list"
            ]
        ]
        assert times == sorted(times, reverse=True)
    euro = ENDPOINTS["oanda"][4]().iloc[:300]
    with quiet_server("oanda", euro) as server:
        assert shape(served(server, "/v3/instruments/EUR_USD/candles?granularity=H1")) == shape(
            recorded("oanda_v3_instruments_instrument_candles")
        )
        assert shape(served(server, f"/v3/accounts/{server.account}/instruments")) == shape(
            recorded("oanda_v3_account_by_accountID_instruments")
        )
        sides = served(server, "/v3/instruments/EUR_USD/candles?granularity=H1&price=MBA&count=2")["candles"]
        assert {name for candle in sides for name in candle} == {
            "complete",
            "volume",
            "time",
            "mid",
            "bid",
            "ask",
        } and sides[-1]["complete"] is False


def test_a_schedule_is_the_same_for_the_same_seed():
    one, two = (FaultSchedule(3, 0.6) for _ in range(2))
    drawn = [one.draw(True) for _ in range(500)]
    assert drawn == [two.draw(True) for _ in range(500)] and set(drawn) == {*FAULTS, None}
    lies = "".join("L" if fault in LIES else "." if fault in (None, "disordered") else "" for fault in drawn)
    assert "LL" in lies and "LLL" not in lies
