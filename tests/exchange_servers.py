"""Stand-in servers on loopback that speak the REST of Binance (spot and USDT-M), Bybit v5 and OANDA v20.

Their faults are drawn from a seed.

    with BinanceServer({("BTCUSDT", "5m"): candles}, FaultSchedule(seed=7)) as server:
        source = ExchangeSource("binance", base_url=server.url, ...)
        ...
        assert_frame_equal(collected, server.expected("BTCUSDT", "5m"))

Classes: `BinanceServer`, `BybitServer`, `OandaServer`; all take
    candles   (symbol, timeframe) -> frame in the project's form
              (ids as the exchange writes them: BTCUSDT, EUR_USD);
    faults    a `FaultSchedule`; the default is a server without faults;
    now       the server's own clock, a UTC Timestamp, or a function without arguments that returns one
              (default: half a candle after the last one has opened, which is therefore unclosed);
    page_limit   the most candles in one answer, whatever is asked (default: the exchange's own limit).
They give `.url`, `.requests` (a list of `Asked`, in order of arrival),
`.expected(symbol, timeframe, start, end)` (closed candles only, every column the exchange tells of) and
`.serve(candles=..., faults=..., now=..., page_limit=...)`, which changes what is served and empties the log.
OANDA wants `Authorization: Bearer TOKEN`, the constructor's `token`.
"""

import asyncio
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import format_datetime

import numpy as np
import pandas as pd
from aiohttp import web

REFUSALS = ("429", "418", "500", "502", "503")
BROKEN = ("reset", "timeout", "truncated", "cut")
LIES = ("empty", "short", "repeated", "overlapping")
FAULTS = (*REFUSALS, *BROKEN, *LIES, "disordered")
MINUTES = {"1m": 1, "5m": 5, "15m": 15, "30m": 30, "1h": 60, "2h": 120, "4h": 240, "1d": 1440}
STEPS = {timeframe: 60_000 * minutes for timeframe, minutes in MINUTES.items()}


@dataclass
class FaultSchedule:
    "Which request goes wrong and how: drawn from the seed, the same for the same order of requests."

    seed: int | None = None  # None: nothing goes wrong
    rate: float = 0.3  # share of the requests that go wrong
    kinds: tuple[str, ...] = FAULTS
    in_a_row: int = 2  # false answers one after the other: more could not be told from the truth
    retry_after: float = 0.005  # seconds in the header Retry-After
    clock_offset: float | None = (
        None  # seconds by which the server's clock is off; None: drawn from -60, 0, 60
    )
    _generator: np.random.Generator = field(init=False, repr=False)
    _lies: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        self._generator = np.random.default_rng(self.seed)
        drawn = float(self._generator.choice([-60.0, 0.0, 60.0]))
        if self.clock_offset is None:
            self.clock_offset = 0.0 if self.seed is None else drawn

    def draw(self, candles: bool) -> str | None:
        "The fault of this request, if any; false answers are told about candles only."
        if self.seed is None:
            return None
        wrong, kind = self._generator.random() < self.rate, str(self._generator.choice(self.kinds))
        if kind == "timeout" and self._generator.random() < 0.7:
            kind = "reset"  # waiting is dear
        if not wrong:
            kind = None
        elif kind in (*LIES, "disordered") and not candles:
            kind = None
        if not candles:
            return kind
        if kind in LIES and self._lies >= self.in_a_row:
            kind = None
        if kind in LIES:
            self._lies += 1
        elif kind is None or kind == "disordered":
            self._lies = 0
        return kind

    def number(self, below: int) -> int:
        return int(self._generator.integers(below))

    def shuffled(self, rows: np.ndarray) -> np.ndarray:
        return self._generator.permutation(rows)


@dataclass
class Asked:
    "One request: what was asked, what went wrong, how many candles were told."

    path: str
    query: dict[str, str]
    fault: str | None = None
    rows: int | None = None
    at: float = field(default_factory=time.monotonic)


def written(value: float) -> str:
    "A number as exchanges write it, exact to the last digit."
    text = f"{value:.8f}"
    return text if float(text) == value else repr(float(value))


def milliseconds(moment: pd.Timestamp) -> int:
    return moment.value // 1_000_000


class StandIn:
    "A web server in a thread: routing, faults, log. Subclasses know how one exchange writes."

    limit = 1000
    forward = True  # answers with the earliest candles of a span that is too long, else with the latest
    columns: tuple[str, ...] = ("open", "high", "low", "close", "volume")

    def __init__(
        self,
        candles: dict[tuple[str, str], pd.DataFrame],
        faults: FaultSchedule | None = None,
        now: pd.Timestamp | Callable[[], pd.Timestamp] | None = None,
        page_limit: int | None = None,
    ):
        self.requests: list[Asked] = []
        self.hang = 1.0  # seconds that a request which times out is kept waiting
        self.serve(candles, faults, now, page_limit)

    def serve(self, candles=None, faults=None, now=None, page_limit=None) -> None:
        "Change what is served; the log begins anew."
        if candles is not None:
            self._tables = {key: self.complete(table) for key, table in candles.items()}
            self._times = {key: table.index.as_unit("ms").asi8 for key, table in self._tables.items()}
            self._written = {
                key: [
                    self.row(opened, STEPS[key[1]], values)
                    for opened, values in zip(
                        self._times[key].tolist(), table.to_dict("records"), strict=True
                    )
                ]
                for key, table in self._tables.items()
            }
        self.faults, self._now, self.page_limit = faults or FaultSchedule(), now, page_limit or self.limit
        self._last: dict[tuple[str, str], np.ndarray] = {}
        self.requests.clear()

    def now(self) -> pd.Timestamp:
        "The server's clock."
        if callable(self._now):
            moment = self._now()
        else:
            moment = self._now or max(
                table.index[-1] + pd.Timedelta(milliseconds=STEPS[timeframe] // 2)
                for (_, timeframe), table in self._tables.items()
            )
        return moment + pd.Timedelta(seconds=self.faults.clock_offset)

    def expected(self, symbol: str, timeframe: str, start=None, end=None) -> pd.DataFrame:
        "What a client should have: closed candles in [start, end)."
        table = self._tables[symbol, timeframe]
        closed = table[table.index + pd.Timedelta(milliseconds=STEPS[timeframe]) <= self.now()]
        return closed[
            (closed.index >= (start or closed.index[0])) & ((closed.index < end) if end is not None else True)
        ]

    def complete(self, table: pd.DataFrame) -> pd.DataFrame:
        "The candles with every column that the exchange tells of, made up where the file has none."
        made = {
            "quote_volume": (table["volume"] * table[["open", "high", "low", "close"]].mean(axis=1)).round(6),
            "trades": np.floor(table["volume"]) + 1,
            "taker_buy_volume": (table["volume"] * 0.4837).round(6),
        }
        table = table.assign(**{name: values for name, values in made.items() if name not in table})
        return table[list(self.columns)].astype(float)

    def row(self, opened: int, step: int, values: dict[str, float]) -> str:
        raise NotImplementedError

    def unclosed(self, opened: int, step: int, values: dict[str, float]) -> str:
        "The candle that is still being made: part of its volume, another close."
        part = {
            name: float(np.floor(value / 3))
            if name in ("volume", "trades", "quote_volume", "taker_buy_volume")
            else value
            for name, value in values.items()
        }
        return self.row(opened, step, part | {"close": values["open"]})

    # one request

    def page(self, key: tuple[str, str], first: int | None, last: int | None, limit: int) -> np.ndarray:
        "Positions of the candles that are told: first <= open time <= last, and no more than the limit."
        times, now = self._times[key], milliseconds(self.now())
        begin = 0 if first is None else np.searchsorted(times, first)
        stop = min(
            np.searchsorted(times, now, "right"),
            len(times) if last is None else np.searchsorted(times, last, "right"),
        )
        rows, limit = np.arange(begin, max(begin, stop)), min(limit, self.page_limit)
        return rows[:limit] if self.forward and first is not None else rows[-limit:]

    def bent(self, key: tuple[str, str], rows: np.ndarray, fault: str | None) -> np.ndarray:
        "The positions after the fault."
        faults, honest = self.faults, rows
        if fault == "empty":
            rows = rows[:0]
        if fault == "short" and len(rows) > 1:
            keep = 1 + faults.number(len(rows) - 1)
            rows = rows[:keep] if faults.number(2) else rows[-keep:]
        if fault == "repeated":
            rows = self._last.get(key, rows)
        if fault == "overlapping" and len(rows):
            rows = np.arange(max(0, rows[0] - 1 - faults.number(len(rows))), rows[-1] + 1)[
                : max(1, len(rows))
            ]
        if fault == "disordered":
            rows = faults.shuffled(rows)
        self._last[key] = honest
        return rows

    def told(self, key: tuple[str, str], rows: np.ndarray) -> list[str]:
        "The candles as the exchange writes them."
        step, now, lines = STEPS[key[1]], milliseconds(self.now()), self._written[key]
        answer = [lines[row] for row in rows]
        for place, row in enumerate(rows):
            if self._times[key][row] + step > now:
                answer[place] = self.unclosed(
                    int(self._times[key][row]), step, self._tables[key].iloc[row].to_dict()
                )
        return answer

    def answer(self, request: web.Request, asked: Asked) -> web.Response:
        raise NotImplementedError

    def refusal(self, status: int) -> web.Response:
        headers = {"Retry-After": f"{self.faults.retry_after:g}"} if status in (429, 418) else {}
        if status >= 500:
            return web.Response(
                status=status,
                text=f"<html><body>{status} Server Error</body></html>",
                content_type="text/html",
            )
        return web.json_response(
            {
                "code": -1003,
                "msg": "Too many requests; please use the websocket for live updates "
                "to avoid polling the API.",
            },
            status=status,
            headers=headers,
        )

    def about_candles(self, path: str) -> bool:
        raise NotImplementedError

    def json(self, text: str, status: int = 200) -> web.Response:
        return web.Response(text=text, status=status, content_type="application/json")

    def nothing_here(self) -> web.Response:
        return web.Response(
            status=404, text="<html><body>404 Not Found</body></html>", content_type="text/html"
        )

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        asked = Asked(request.path, dict(request.query), self.faults.draw(self.about_candles(request.path)))
        self.requests.append(asked)
        if asked.fault in REFUSALS:
            return self.refusal(int(asked.fault))
        if asked.fault == "timeout":
            await asyncio.sleep(self.hang)
        if asked.fault in ("timeout", "reset"):
            return self._reset(request)
        response = self.answer(request, asked)
        if asked.fault == "truncated":
            return self.json(response.text[: self.faults.number(len(response.text))], response.status)
        if asked.fault == "cut":
            return await self._cut(request, response)
        return response

    def _reset(self, request: web.Request) -> web.Response:
        if request.transport is None:
            return web.Response()  # the client has gone
        request.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )
        request.transport.abort()
        return web.Response()

    async def _cut(self, request: web.Request, response: web.Response) -> web.StreamResponse:
        "All headers and half of the body, then the connection ends."
        partial = web.StreamResponse(
            headers={"Content-Type": "application/json", "Content-Length": str(len(response.body))}
        )
        await partial.prepare(request)
        await partial.write(response.body[: len(response.body) // 2])
        request.transport.close()
        return partial

    # the thread

    def __enter__(self):
        ready, problems = threading.Event(), []
        self._thread = threading.Thread(target=self._run, args=(ready, problems), daemon=True)
        self._thread.start()
        ready.wait()
        if problems:
            raise problems[0]
        return self

    def _run(self, ready: threading.Event, problems: list) -> None:
        async def main():
            try:
                application = web.Application()
                application.router.add_route("GET", "/{path:.*}", self._handle)
                runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.05)
                await runner.setup()
                await web.TCPSite(runner, "127.0.0.1", 0).start()
                self.url, self._loop, self._stop = (
                    f"http://127.0.0.1:{runner.addresses[0][1]}",
                    asyncio.get_running_loop(),
                    asyncio.Event(),
                )
            except BaseException as problem:
                problems.append(problem)
                raise
            finally:
                ready.set()
            await self._stop.wait()
            await runner.cleanup()

        asyncio.run(main())

    def __exit__(self, *_) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)


BINANCE_INTERVALS = (
    "1s",
    "1m",
    "3m",
    "5m",
    "15m",
    "30m",
    "1h",
    "2h",
    "4h",
    "6h",
    "8h",
    "12h",
    "1d",
    "3d",
    "1w",
    "1M",
)


def base_and_quote(symbol: str) -> tuple[str, str]:
    quote = next(quote for quote in ("USDT", "USDC", "BTC", "ETH", "USD", "EUR") if symbol.endswith(quote))
    return symbol.removesuffix(quote), quote


class BinanceServer(StandIn):
    "Spot under /api/v3 and USDT-M perpetuals under /fapi/v1; the same candles in both."

    limit, columns = 1500, (*StandIn.columns, "quote_volume", "trades", "taker_buy_volume")

    def __init__(
        self,
        *arguments,
        funding: dict[str, pd.Series] | None = None,
        books: dict[str, tuple[list, list]] | None = None,
        **options,
    ):
        super().__init__(*arguments, **options)
        self.funding, self.books = (
            funding or {},
            books or {},
        )  # rates by time; (bids, asks) as lists of (price, size)

    def row(self, opened, step, values):
        *begin, quote, trades, taker = (values[name] for name in self.columns)
        told = ",".join(f'"{written(value)}"' for value in begin)
        taken = written(taker * values["close"])
        return (
            f'[{opened},{told},{opened + step - 1},"{written(quote)}",{int(trades)},'
            f'"{written(taker)}","{taken}","0"]'
        )

    def about_candles(self, path):
        return path.endswith("/klines")

    def answer(self, request, asked):
        spot, name, query = (
            request.path.startswith("/api/v3/"),
            request.path.rsplit("/", 1)[-1],
            request.query,
        )
        if not request.path.startswith(("/api/v3/", "/fapi/v1/")):
            return self.nothing_here()
        if name == "time":
            return web.json_response({"serverTime": milliseconds(self.now())})
        if name == "exchangeInfo":
            return web.json_response(self.exchange_info(spot))
        if name not in ("klines", "depth", "fundingRate"):
            return self.nothing_here()
        known = {symbol for symbol, _ in self._tables} | set(self.funding) | set(self.books)
        if query.get("symbol") not in known:
            return web.json_response({"code": -1121, "msg": "Invalid symbol."}, status=400)
        return getattr(self, name)(query, asked, spot)

    def klines(self, query, asked, spot):
        if query["interval"] not in BINANCE_INTERVALS:
            return web.json_response({"code": -1120, "msg": "Invalid interval."}, status=400)
        key = query["symbol"], query["interval"]
        if key not in self._tables:
            return self.json("[]")
        first, last = (int(query[name]) if name in query else None for name in ("startTime", "endTime"))
        rows = self.bent(
            key,
            self.page(key, first, last, min(int(query.get("limit", 500)), 1000 if spot else 1500)),
            asked.fault,
        )
        asked.rows = len(rows)
        return self.json(f"[{','.join(self.told(key, rows))}]")

    def depth(self, query, asked, spot):
        limit, sides = int(query.get("limit", 100)), self.books[query["symbol"]]
        bids, asks = ([[written(price), written(size)] for price, size in side[:limit]] for side in sides)
        times = {} if spot else {"E": milliseconds(self.now()), "T": milliseconds(self.now()) - 10}
        return web.json_response({"lastUpdateId": 499869752} | times | {"bids": bids, "asks": asks})

    def fundingRate(self, query, asked, spot):
        rates, limit = self.funding[query["symbol"]], int(query.get("limit", 100))
        times = rates.index.as_unit("ms").asi8
        inside = (times >= int(query.get("startTime", 0))) & (
            times <= int(query.get("endTime", milliseconds(self.now())))
        )
        chosen = (
            rates[inside].iloc[: min(limit, self.page_limit)]
            if "startTime" in query
            else rates[inside].iloc[-limit:]
        )
        return web.json_response(
            [
                {
                    "symbol": query["symbol"],
                    "fundingTime": milliseconds(time),
                    "fundingRate": written(rate),
                    "markPrice": "34287.54619963",
                }
                for time, rate in chosen.items()
            ]
        )

    def exchange_info(self, spot: bool) -> dict:
        symbols = sorted({symbol for symbol, _ in self._tables} | set(self.funding) | set(self.books))
        minute = {
            "rateLimitType": "REQUEST_WEIGHT",
            "interval": "MINUTE",
            "intervalNum": 1,
            "limit": 1200 if spot else 2400,
        }
        orders = [
            {"rateLimitType": "ORDERS", "interval": "SECOND", "intervalNum": 10, "limit": 50 if spot else 300}
        ]
        about = {
            "timezone": "UTC",
            "serverTime": milliseconds(self.now()),
            "rateLimits": [minute, *orders],
            "exchangeFilters": [],
        }
        if spot:
            return about | {"symbols": [self.spot_symbol(symbol) for symbol in symbols]}
        assets = [{"asset": "USDT", "marginAvailable": True, "autoAssetExchange": "-10000"}]
        return about | {
            "futuresType": "U_MARGINED",
            "assets": assets,
            "symbols": [self.perpetual_symbol(symbol) for symbol in symbols],
        }

    def spot_symbol(self, symbol: str) -> dict:
        base, quote = base_and_quote(symbol)
        filters = [
            {
                "filterType": "PRICE_FILTER",
                "minPrice": "0.01000000",
                "maxPrice": "1000000.00000000",
                "tickSize": "0.01000000",
            },
            {
                "filterType": "LOT_SIZE",
                "minQty": "0.00001000",
                "maxQty": "9000.00000000",
                "stepSize": "0.00001000",
            },
            {
                "filterType": "MIN_NOTIONAL",
                "minNotional": "10.00000000",
                "applyToMarket": True,
                "avgPriceMins": 5,
            },
        ]
        return {
            "symbol": symbol,
            "status": "TRADING",
            "baseAsset": base,
            "baseAssetPrecision": 8,
            "quoteAsset": quote,
            "quotePrecision": 8,
            "quoteAssetPrecision": 8,
            "baseCommissionPrecision": 8,
            "quoteCommissionPrecision": 8,
            "orderTypes": ["LIMIT", "LIMIT_MAKER", "MARKET"],
            "icebergAllowed": True,
            "ocoAllowed": True,
            "quoteOrderQtyMarketAllowed": True,
            "isSpotTradingAllowed": True,
            "isMarginTradingAllowed": True,
            "filters": filters,
            "permissions": ["SPOT", "MARGIN"],
        }

    def perpetual_symbol(self, symbol: str) -> dict:
        base, quote = base_and_quote(symbol)
        filters = [
            {"minPrice": "0.01", "maxPrice": "1000000", "filterType": "PRICE_FILTER", "tickSize": "0.01"},
            {"stepSize": "0.001", "filterType": "LOT_SIZE", "maxQty": "1000", "minQty": "0.001"},
            {"notional": "5", "filterType": "MIN_NOTIONAL"},
        ]
        return {
            "symbol": symbol,
            "pair": symbol,
            "contractType": "PERPETUAL",
            "deliveryDate": 4133404800000,
            "onboardDate": 1569398400000,
            "status": "TRADING",
            "maintMarginPercent": "2.5000",
            "requiredMarginPercent": "5.0000",
            "baseAsset": base,
            "quoteAsset": quote,
            "marginAsset": quote,
            "pricePrecision": 2,
            "quantityPrecision": 3,
            "baseAssetPrecision": 8,
            "quotePrecision": 8,
            "underlyingType": "COIN",
            "underlyingSubType": [],
            "settlePlan": 0,
            "triggerProtect": "0.0500",
            "liquidationFee": "0.020000",
            "marketTakeBound": "0.30",
            "filters": filters,
            "orderTypes": ["LIMIT", "MARKET", "STOP"],
            "timeInForce": ["GTC", "IOC", "FOK", "GTX"],
        }


BYBIT_INTERVALS = {
    "1": "1m",
    "3": "3m",
    "5": "5m",
    "15": "15m",
    "30": "30m",
    "60": "1h",
    "120": "2h",
    "240": "4h",
    "360": "6h",
    "720": "12h",
    "D": "1d",
    "W": "1w",
    "M": "1M",
}


class BybitServer(StandIn):
    "Version 5: category spot or linear, the latest candles of a span first; the same candles in both."

    forward, columns = False, (*StandIn.columns, "quote_volume")

    def __init__(
        self,
        *arguments,
        funding: dict[str, pd.Series] | None = None,
        books: dict[str, tuple[list, list]] | None = None,
        **options,
    ):
        super().__init__(*arguments, **options)
        self.funding, self.books = funding or {}, books or {}

    def row(self, opened, step, values):
        return (
            "["
            + ",".join(f'"{text}"' for text in (opened, *(written(values[name]) for name in self.columns)))
            + "]"
        )

    def about_candles(self, path):
        return path.endswith("/market/kline")

    def reply(self, result: dict, code: int = 0, message: str = "OK") -> dict:
        return {
            "retCode": code,
            "retMsg": message,
            "result": result,
            "retExtInfo": {},
            "time": milliseconds(self.now()),
        }

    def refusal(self, status):
        if status != 429:
            return super().refusal(status)
        return web.json_response(
            self.reply({}, 10006, "Too many visits. Exceeded the API Rate Limit."),
            headers={"Retry-After": f"{self.faults.retry_after:g}"},
        )

    def answer(self, request, asked):
        name, query = (
            request.path.removeprefix("/v5/market/").replace("/", "_").replace("-", "_"),
            request.query,
        )
        if name == "time":
            moment = self.now()
            return web.json_response(
                self.reply({"timeSecond": str(moment.value // 10**9), "timeNano": str(moment.value)})
            )
        if name == "instruments_info":
            return web.json_response(self.reply(self.instruments(query["category"], query.get("status"))))
        if name not in ("kline", "orderbook", "funding_history"):
            return self.nothing_here()
        known = {symbol for symbol, _ in self._tables} | set(self.funding) | set(self.books)
        if query.get("symbol") not in known:
            return web.json_response(self.reply({}, 10001, "Not supported symbols"))
        return getattr(self, name)(query, asked)

    def kline(self, query, asked):
        if query["interval"] not in BYBIT_INTERVALS:
            return web.json_response(self.reply({}, 10001, "Invalid period!"))
        key = query["symbol"], BYBIT_INTERVALS[query["interval"]]
        limit = min(int(query.get("limit", 200)), self.limit)
        first, last = (int(query[name]) if name in query else None for name in ("start", "end"))
        if first is not None and last is None:
            last = first + limit * STEPS[key[1]] - 1
        rows = self.page(key, first, last, limit)[::-1] if key in self._tables else np.arange(0)
        rows = self.bent(key, rows[::-1], asked.fault)
        asked.rows = len(rows)
        lines = (
            ",".join(self.told(key, rows if asked.fault == "disordered" else rows[::-1]))
            if key in self._tables
            else ""
        )
        result = f'{{"symbol":"{query["symbol"]}","category":"{query["category"]}","list":[{lines}]}}'
        return self.json(
            f'{{"retCode":0,"retMsg":"OK","result":{result},"retExtInfo":{{}},"time":{milliseconds(self.now())}}}'
        )

    def orderbook(self, query, asked):
        limit, sides = int(query.get("limit", 1)), self.books[query["symbol"]]
        bids, asks = ([[written(price), written(size)] for price, size in side[:limit]] for side in sides)
        return web.json_response(
            self.reply(
                {"s": query["symbol"], "b": bids, "a": asks, "u": 1203433656, "ts": milliseconds(self.now())}
            )
        )

    def funding_history(self, query, asked):
        rates, limit = self.funding[query["symbol"]], min(int(query.get("limit", 200)), 200, self.page_limit)
        times = rates.index.as_unit("ms").asi8
        inside = (times >= int(query.get("startTime", 0))) & (
            times <= int(query.get("endTime", milliseconds(self.now())))
        )
        rows = [
            {
                "symbol": query["symbol"],
                "fundingRate": written(rate),
                "fundingRateTimestamp": str(milliseconds(time)),
            }
            for time, rate in rates[inside].iloc[-limit:].items()
        ]
        return web.json_response(self.reply({"category": query["category"], "list": rows[::-1]}))

    def instruments(self, category: str, status: str | None) -> dict:
        symbols = (
            sorted({symbol for symbol, _ in self._tables} | set(self.funding) | set(self.books))
            if status is None
            else []
        )
        if category == "spot":
            return {"category": "spot", "list": [self.spot_symbol(symbol) for symbol in symbols]}
        return {
            "category": category,
            "list": [self.perpetual_symbol(symbol) for symbol in symbols],
            "nextPageCursor": "",
        }

    def spot_symbol(self, symbol: str) -> dict:
        base, quote = base_and_quote(symbol)
        lot = {
            "basePrecision": "0.000001",
            "quotePrecision": "0.00000001",
            "minOrderQty": "0.000048",
            "maxOrderQty": "71.73956243",
            "minOrderAmt": "1",
            "maxOrderAmt": "2000000",
        }
        return {
            "symbol": symbol,
            "baseCoin": base,
            "quoteCoin": quote,
            "innovation": "0",
            "status": "Trading",
            "marginTrading": "both",
            "lotSizeFilter": lot,
            "priceFilter": {"tickSize": "0.01"},
        }

    def perpetual_symbol(self, symbol: str) -> dict:
        base, quote = base_and_quote(symbol)
        return {
            "symbol": symbol,
            "contractType": "LinearPerpetual",
            "status": "Trading",
            "baseCoin": base,
            "quoteCoin": quote,
            "launchTime": "1585526400000",
            "deliveryTime": "0",
            "deliveryFeeRate": "",
            "priceScale": "2",
            "leverageFilter": {"minLeverage": "1", "maxLeverage": "100.00", "leverageStep": "0.01"},
            "priceFilter": {"minPrice": "0.50", "maxPrice": "999999.00", "tickSize": "0.50"},
            "lotSizeFilter": {
                "maxOrderQty": "100.000",
                "minOrderQty": "0.001",
                "qtyStep": "0.001",
                "postOnlyMaxOrderQty": "1000.000",
            },
            "unifiedMarginTrade": True,
            "fundingInterval": 480,
            "settleCoin": quote,
        }


OANDA_GRANULARITIES = {"M1": "1m", "M5": "5m", "M15": "15m", "H1": "1h", "H4": "4h", "D": "1d"}


class OandaServer(StandIn):
    "Version 20: mid, bid and ask candles of instruments, for those who bring the token."

    limit, columns, account = 5000, (*StandIn.columns, "bid", "ask"), "101-004-1435156-001"

    def __init__(self, *arguments, token: str = "test-token-0123456789", **options):
        super().__init__(*arguments, **options)
        self.token = token

    def complete(self, table):
        half = pd.Series(np.where(table["close"] > 20, 0.005, 0.00005), table.index)
        if "bid" not in table:
            table = table.assign(bid=(table["close"] - half).round(5), ask=(table["close"] + half).round(5))
        return table[list(self.columns)].astype(float)

    def row(self, opened, step, values):
        return self.candle(opened, values, "true")

    def unclosed(self, opened, step, values):
        return self.candle(
            opened, values | {"volume": values["volume"] // 3, "close": values["open"]}, "false"
        )

    def candle(self, opened: int, values: dict[str, float], complete: str) -> str:
        sides = {"mid": values["close"], "bid": values["bid"], "ask": values["ask"]}
        names = {"o": "open", "h": "high", "l": "low", "c": "close"}
        prices = {
            side: {letter: round(values[name] + close - values["close"], 5) for letter, name in names.items()}
            | {"c": close}
            for side, close in sides.items()
        }
        told = {
            side: ",".join(f'"{letter}":"{price:.5f}"' for letter, price in row.items())
            for side, row in prices.items()
        }
        text = ",".join(f'"{side}":{{{row}}}' for side, row in told.items())
        time = pd.Timestamp(opened, unit="ms").strftime("%Y-%m-%dT%H:%M:%S.000000000Z")
        return f'{{"complete":{complete},"volume":{int(values["volume"])},"time":"{time}",{text}}}'

    def about_candles(self, path):
        return path.endswith("/candles")

    def refusal(self, status):
        if status >= 500:
            return super().refusal(status)
        return web.json_response(
            {"errorMessage": "Too many requests"},
            status=status,
            headers={"Retry-After": f"{self.faults.retry_after:g}"},
        )

    def answer(self, request, asked):
        response = self.replied(request, asked)
        response.headers["Date"] = format_datetime(self.now().to_pydatetime().astimezone(UTC), usegmt=True)
        return response

    def replied(self, request, asked):
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.json_response(
                {"errorMessage": "Insufficient authorization to perform request."}, status=401
            )
        if request.path == "/v3/accounts":
            return web.json_response({"accounts": [{"id": self.account, "tags": []}]})
        if request.path == f"/v3/accounts/{self.account}/instruments":
            return web.json_response(
                {
                    "instruments": [
                        self.instrument(name) for name in sorted({name for name, _ in self._tables})
                    ],
                    "lastTransactionID": "2124",
                }
            )
        parts = request.path.split("/")
        if request.path.endswith("/candles") and len(parts) == 5:
            return self.candles(
                parts[3], request.query, asked, request.headers.get("Accept-Datetime-Format") == "UNIX"
            )
        return web.json_response({"errorMessage": "No such path"}, status=404)

    def refused(self, name: str, reason: str = "") -> web.Response:
        return web.json_response(
            {"errorMessage": f"Invalid value specified for '{name}'{reason}"}, status=400
        )

    def candles(self, instrument: str, query, asked, counts: bool) -> web.Response:
        timeframe = OANDA_GRANULARITIES.get(query.get("granularity", "S5"))
        if timeframe is None:
            return self.refused("granularity")
        if instrument not in {name for name, _ in self._tables}:
            return self.refused("instrument")
        key = instrument, timeframe
        first, last = (self.moment(query[name]) if name in query else None for name in ("from", "to"))
        if first is not None and first > milliseconds(self.now()):
            return self.refused("from", ". Time is in the future")
        if "count" in query and first is not None and last is not None:
            return self.refused("count", ". Cannot be given with both from and to")
        if int(query.get("count", 500)) > self.limit or (
            last is not None and first is not None and (last - first) // STEPS[timeframe] > self.limit
        ):
            return self.refused("count", ". Maximum value exceeded")
        count = self.limit if first is not None and last is not None else int(query.get("count", 500))
        rows = (
            self.page(key, first, None if last is None else last - 1, count)
            if key in self._tables
            else np.arange(0)
        )
        rows = self.bent(key, rows, asked.fault)
        asked.rows, lines = len(rows), ",".join(self.told(key, rows)) if len(rows) else ""
        if (wanted := set(query.get("price", "M"))) != set("MBA"):
            sides = {"mid": "M", "bid": "B", "ask": "A"}
            lines = json.dumps(
                [
                    {
                        name: value
                        for name, value in candle.items()
                        if sides.get(name, "") in wanted or name not in sides
                    }
                    for candle in json.loads(f"[{lines}]")
                ]
            )[1:-1]
        if counts:
            lines = re.sub(
                r'"time":"([^"]*)"',
                lambda found: f'"time":"{pd.Timestamp(found[1]).value // 10**9}.000000000"',
                lines,
            )
        return self.json(
            f'{{"instrument":"{instrument}","granularity":"{query["granularity"]}","candles":[{lines}]}}'
        )

    def moment(self, text: str) -> int:
        return int(float(text) * 1000) if text[:5].isdigit() else pd.Timestamp(text).value // 1_000_000

    def instrument(self, name: str) -> dict:
        return {
            "minimumTradeSize": "1",
            "displayName": name.replace("_", "/"),
            "name": name,
            "displayPrecision": 5,
            "type": "CURRENCY",
            "minimumTrailingStopDistance": "0.00050",
            "marginRate": "0.05",
            "maximumOrderUnits": "100000000",
            "tradeUnitsPrecision": 0,
            "pipLocation": -4,
            "maximumPositionSize": "0",
            "maximumTrailingStopDistance": "1.00000",
        }
