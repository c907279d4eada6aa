"""Stand-in exchanges on loopback that stream candles: the websockets of Binance and Bybit beside their REST.

    clock = MarketClock(candles.index[100], speed=3000)
    with StreamingServer("binance", {("BTCUSDT", "5m"): candles}, clock, Script(drops={110})) as exchange:
        urls = {"base_url": exchange.url, "stream_url": exchange.stream_url}
        feed = ExchangeFeed("binance", ["BTCUSDT"], clock=clock, **urls)

What is streamed is what the exchanges send: for each candle an update while it is open, then one that says
that it is closed (`x`, `confirm`). A `Script` names the candles (by their place in the table) at which
something goes wrong. REST is answered by `BinanceServer` and `BybitServer`, from the same candles, by the
same clock.
"""

import asyncio
import json
import threading
from dataclasses import dataclass, field

import pandas as pd
from aiohttp import WSMsgType, web
from exchange_servers import BYBIT_INTERVALS, STEPS, BinanceServer, BybitServer, FaultSchedule, written

from smc_ml.candles import PRICES
from smc_ml.live.feeds.interface import MarketClock


class HeldClock(MarketClock):
    "A market's clock that stands until it is let go, so that a slow start costs no candles."

    def __init__(self, start: pd.Timestamp, speed: float):
        super().__init__(start, speed)
        self.first: pd.Timestamp | None = start

    def now(self) -> pd.Timestamp:
        return super().now() if self.first is None else self.first

    def go(self) -> None:
        if self.first is not None:
            super().__init__(self.first, self.speed)
            self.first = None


@dataclass
class Script:
    "What goes wrong, by the place of the candle at whose close it does."

    drops: set[int] = field(default_factory=set)  # the connection ends
    refused: int = 0  # connections that are refused after the first
    silent: tuple[int, int] = (-1, -1)  # from this candle up to that one only pings are answered
    lost: set[int] = field(default_factory=set)  # the closing update never comes
    twice: set[int] = field(default_factory=set)  # the closing update comes twice
    late: set[int] = field(default_factory=set)  # it comes after that of the next candle
    wrong: set[int] = field(default_factory=set)  # with a high below its low
    nonsense: set[int] = field(default_factory=set)  # a message that is none
    away: tuple[int, int] = (-1, -1)  # from this candle's open to that one's nobody answers, REST included
    early: set[int] = field(default_factory=set)  # called closed while it is open


class _Away(FaultSchedule):
    "The faults of a server that cannot be reached now and then."

    def __init__(self, away, otherwise: FaultSchedule | None):
        super().__init__(clock_offset=0.0)
        self.away, self.otherwise = away, otherwise

    def draw(self, candles: bool) -> str | None:
        if self.away():
            return "503"
        return self.otherwise.draw(candles) if self.otherwise else None


class StreamingServer:
    "REST and websocket of one exchange, in threads."

    def __init__(
        self,
        exchange: str,
        candles: dict[tuple[str, str], pd.DataFrame],
        clock: MarketClock,
        script: Script | None = None,
        skew: float = 0.0,  # seconds by which the exchange's clock is ahead
        faults: FaultSchedule | None = None,  # of REST
    ):
        self.exchange, self.clock, self.script = exchange, clock, script or Script()
        self.skew = pd.Timedelta(seconds=skew)
        self.rest = {"binance": BinanceServer, "bybit": BybitServer}[exchange](
            candles, _Away(self.away, faults), self.now
        )
        self.tables = {key: self.rest.complete(table) for key, table in candles.items()}
        self.connections = self.refusals = 0
        self.subscribed: list[tuple[str, str]] = []

    def now(self) -> pd.Timestamp:
        return self.clock.now() + self.skew

    def away(self) -> bool:
        "Whether nobody answers now."
        index, (first, last) = next(iter(self.tables.values())).index, self.script.away
        return first >= 0 and index[first] <= self.now() < index[last]

    @property
    def url(self) -> str:
        return self.rest.url

    # what is sent

    def told(
        self, key: tuple[str, str], place: int, closed: bool, wrong: bool = False, early: bool = False
    ) -> str:
        "A candle as the exchange streams it."
        table, step = self.tables[key], STEPS[key[1]]
        values, opened = table.iloc[place].to_dict(), table.index[place].value // 1_000_000
        if not closed:
            values |= {"close": values["open"], "volume": values["volume"] / 4}
        closed = closed or early
        if wrong:
            values["high"] = values["low"] / 2
        text = {name: written(value) for name, value in values.items()}
        moment = self.now().value // 1_000_000
        if self.exchange == "binance":
            prices = {letter: text[name] for letter, name in zip("ohlc", PRICES, strict=True)}
            amounts = {"v": text["volume"], "q": text["quote_volume"], "V": text["taker_buy_volume"]}
            counts = {"n": int(values["trades"]), "x": closed, "i": key[1], "s": key[0]}
            kline = {"t": opened, "T": opened + step - 1, **prices, **amounts, **counts, "Q": "0", "B": "0"}
            return json.dumps({"e": "kline", "E": moment, "s": key[0], "k": kline})
        interval = next(name for name, timeframe in BYBIT_INTERVALS.items() if timeframe == key[1])
        prices = {name: text[name] for name in ("open", "high", "low", "close", "volume")}
        facts = {"turnover": text["quote_volume"], "confirm": closed, "timestamp": moment}
        candle = {"start": opened, "end": opened + step - 1, "interval": interval, **prices, **facts}
        topic = f"kline.{interval}.{key[0]}"
        return json.dumps({"topic": topic, "data": [candle], "ts": moment, "type": "snapshot"})

    async def send(self, socket: web.WebSocketResponse, key: tuple[str, str]) -> None:
        "Updates of one subscription, as the clock passes the candles."
        table, step, kept = self.tables[key], pd.Timedelta(milliseconds=STEPS[key[1]]), []
        script, place = self.script, int(table.index.searchsorted(self.now() - step, side="right"))
        while isinstance(self.clock, HeldClock) and self.clock.first is not None:
            await socket.send_str(self.told(key, place, False))
            await asyncio.sleep(0.05)
        while place < len(table):
            opened, closes = table.index[place], table.index[place] + step
            await self.sleep_until(opened + step / 2)
            if self.away():
                await socket.close(code=1006)
                return
            silent = script.silent[0] <= place < script.silent[1]
            if not silent:
                await socket.send_str(self.told(key, place, False, early=place in script.early))
            await self.sleep_until(closes)
            if place in script.drops:
                script.drops.discard(place)
                await socket.close(code=1006)
                return
            if place in script.nonsense:
                await socket.send_str('{"e": "kline", "topic": "kline.5.X", "k": {}, "data": [{}]}')
            message = self.told(key, place, True, place in script.wrong)
            if place in script.late:
                kept.append(message)
            elif not silent and place not in script.lost:
                for _ in range(1 + (place in script.twice)):
                    await socket.send_str(message)
                while kept:
                    await socket.send_str(kept.pop())
            place += 1

    async def sleep_until(self, moment: pd.Timestamp) -> None:
        while (wait := self.clock.seconds(moment - self.now())) > 0:
            await asyncio.sleep(min(wait, 0.05))  # the clock may be held

    # the connection

    def keys_of(self, message: dict) -> list[tuple[str, str]]:
        "What a message subscribes to."
        if self.exchange == "binance" and message.get("method") == "SUBSCRIBE":
            streams = [stream.split("@kline_") for stream in message["params"]]
            return [(symbol.upper(), interval) for symbol, interval in streams]
        if self.exchange == "bybit" and message.get("op") == "subscribe":
            topics = [topic.split(".") for topic in message["args"]]
            return [(symbol, BYBIT_INTERVALS[interval]) for _, interval, symbol in topics]
        return []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.connections += 1
        if self.away():
            return web.Response(status=503)
        if self.connections > 1 and self.refusals < self.script.refused:
            self.refusals += 1
            return web.Response(status=503)
        socket, senders = web.WebSocketResponse(), []
        await socket.prepare(request)
        try:
            async for told in socket:
                if told.type != WSMsgType.TEXT:
                    continue
                message = json.loads(told.data)
                if message.get("op") == "ping":
                    await socket.send_str(json.dumps({"success": True, "ret_msg": "pong", "op": "ping"}))
                for key in self.keys_of(message):
                    self.subscribed.append(key)
                    senders.append(asyncio.ensure_future(self.send(socket, key)))
                if self.keys_of(message) and self.exchange == "binance":
                    await socket.send_str(json.dumps({"result": None, "id": message["id"]}))
                elif self.keys_of(message):
                    reply = {"success": True, "ret_msg": "", "op": "subscribe", "req_id": message["req_id"]}
                    await socket.send_str(json.dumps(reply))
        finally:
            for sender in senders:
                sender.cancel()
        return socket

    # the thread

    def __enter__(self):
        self.rest.__enter__()
        ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main(ready)), daemon=True)
        self._thread.start()
        assert ready.wait(10)
        return self

    async def _main(self, ready: threading.Event) -> None:
        application = web.Application()
        application.router.add_get("/{path:.*}", self.handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.05)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.stream_url = f"ws://127.0.0.1:{runner.addresses[0][1]}"
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        ready.set()
        await self._stop.wait()
        await runner.cleanup()

    def __exit__(self, *_) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(5)
        self.rest.__exit__(None, None, None)
