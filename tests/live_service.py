"""A service over a real database, for tests: what a live process would write, and one that stands for it."""

import asyncio
import threading
from contextlib import contextmanager

import numpy as np
import pandas as pd

from smc_ml.live.messages import (
    AccountState,
    ClosedCandles,
    Decision,
    Fill,
    Forecast,
    Holding,
    Notice,
    Order,
    Prediction,
    PredictionOutcome,
    Signal,
)
from smc_ml.live.store.live_store import LiveStore
from smc_ml.service.app import Service
from smc_ml.service.config import ServiceConfig, Token
from smc_ml.service.looking import Views
from smc_ml.service.running import ServiceServer
from smc_ml.service.sources import LiveStatus
from smc_ml.simulation.config import SimulationConfig
from smc_ml.simulation.market import simulate_market

TOKEN = "a-token-for-tests-only-0123456789"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
STEP = pd.Timedelta("5min")
SPAN = {
    "train_first": "2023-01-01 00:00:00+00:00",
    "train_last": "2023-12-31 00:00:00+00:00",
    "train_events": 9,
}
SCORES = {"accuracy": 0.593, "accuracy_low": 0.58, "accuracy_high": 0.607, "majority_rate": 0.576}
SCORES |= {"log_loss_gain": 0.0162, "log_loss_gain_low": 0.0101, "log_loss_gain_high": 0.0223}
FACTS = {
    "market": {"timeframe": "5m", "series": {name: {"source": "simulated"} for name in ("SIM-A", "SIM-B")}},
    "settings": {"patterns": {"timeframes": ["5m", "15m"]}},
    "models": {name: SPAN | {"samples": of} for name, of in (("lstm", "events"), ("patchtst", "bars"))},
    "metrics": {
        "models": {"lstm": SCORES, "patchtst": {"measures": 28, "measures_above_chance": 15}},
        "ensemble": SCORES,
        "importance": [
            {
                "model": "lstm",
                "feature": "order_book_imbalance",
                "importance": 0.036,
                "low": 0.011,
                "high": 0.061,
            }
        ],
    },
    "ensemble": {"weights": {"lstm": 1.0}, "events": 900},
}


class Process:
    "Stands for the process that trades: it is as it is told to be."

    def __init__(self):
        feed = {"connected": True, "age": 2.5, "lag": 0.5, "reconnects": 1}
        alert = {"known_at": "2024-01-09T00:00:00+00:00", "source": "drift", "metric": "log_volume"}
        alert |= {"level": "warning", "what": "its days differ from the reference"}
        self.state = LiveStatus(True, "", "", feed, {}, alerts=[alert])
        self.killed: list[tuple[str, bool]] = []

    def status(self):
        return self.state

    def kill(self, reason, close_all):
        self.killed.append((reason, close_all))
        self.state = self.state._replace(stopped=reason)

    def ask(self, symbol, direction, rows):
        return pd.DataFrame({"symbol": [symbol], "signal": ["NEUTRAL"], "probability": [np.nan]})


def decision_at(symbol: str, known_at: pd.Timestamp, number: int) -> Decision:
    "A decision; every second one is short."
    way = 1 if number % 2 else -1
    facts = known_at - 12 * STEP, known_at - 3 * STEP, 101.0, 100.0, 99.5, 1.0
    return Decision(symbol, known_at, number, way, "order_block", "5m", *facts)


def signal_of(decision: Decision, reason: str = "") -> Signal:
    "The signal of a decision."
    share = 0.5 + (decision.event_id % 9) / 20
    side = "LONG" if decision.direction > 0 else "SHORT"
    facts = "v" * 64, side, reason, share, "strong" if share >= 0.8 else "plain", 0.25, -1.25, 1.5, 0.1
    return Signal(
        decision.key, decision.symbol, "5m", decision.known_at, *facts, {"1h": 0.01}, 0.004, "h", decision
    )


def write_close(store: LiveStore, known_at: pd.Timestamp, equity: float, *signals: Signal, **more) -> None:
    "A close with an account and signals."
    held = Holding("SIM-A", "o1", known_at - 6 * STEP, 100.5, -2.5, 101.25, 98.5, 250.0, 6)
    account = AccountState(known_at, equity, equity - 250, -0.0123, 0.025, (held,))
    said = {"predictions": [prediction_of(one) for one in signals]} | more
    store.close_of(known_at, signals=signals, account=account, **said)


def prediction_of(signal: Signal) -> Prediction:
    "What the models said of it."
    numbers = signal.confidence, signal.low, signal.high, signal.expected_r, signal.disagreement
    facts = signal.model_version, signal.symbol, "5m", signal.known_at, "champion"
    return Prediction(signal.key, *facts, *numbers, {"lstm": signal.confidence}, "", "h", signal.decision)


def filled(store: LiveStore) -> pd.DatetimeIndex:
    "Write ten days: candles, signals and predictions with outcomes, a trade, forecasts, notices; the closes."
    market = simulate_market(["SIM-A", "SIM-B"], "2024-01-01", "2024-01-11", SimulationConfig())
    for symbol, path in market.items():
        store.write_candles(symbol, "5m", path.candles[-600:])
    closes = market["SIM-A"].candles.index[40::72] + STEP
    for number, close in enumerate(closes):
        signal = signal_of(
            decision_at("SIM-A", close, number), "" if number % 3 else "below the least expectation"
        )
        more = {}
        if number == len(closes) - 1:
            order = Order("o1", signal.key, "SIM-A", "SELL", close, -0.025, 101.25)
            fill = Fill("o1", "SIM-A", close, close, "entry", -2.5, 100.5, 0.1, 0.0, 0.0, np.nan)
            said = {"expected_return": -0.0031, "probability_up": 0.31, "probability_down": 0.44}
            forecasts = [
                Forecast("SIM-A", close, "v" * 64, "patchtst", target, said) for target in ("1h", "4h")
            ]
            more = {"orders": [order], "fills": [fill], "forecasts": forecasts}
            more["notices"] = [Notice(close, "feed", "degraded", "silent <b>for</b> 10 minutes")]
        write_close(store, close, 10_000.0 + 12.5 * number, signal, **more)
        won = number % 3 == 0
        exits = close + 3 * STEP
        outcome = PredictionOutcome(
            prediction_of(signal).prediction_id,
            exits,
            close,
            exits,
            "win" if won else "loss",
            won,
            1.2 if won else -1.0,
        )
        store.write(outcome)
    return closes


@contextmanager
def serving(store: LiveStore, process: Process | None = None, config: ServiceConfig | None = None):
    "The address of a service over a store, in a thread of its own, and the service."
    config = config or ServiceConfig(port=0, poll=0.1, rate=None)
    service = Service(Views(store, process or Process(), FACTS, "d" * 64, config), Token(TOKEN, False))
    loop, found, over = asyncio.new_event_loop(), [], threading.Event()
    stop: list[asyncio.Event] = []

    async def main():
        stop.append(asyncio.Event())
        async with ServiceServer(service) as server:
            found.append(server.address)
            over.set()
            await stop[0].wait()

    thread = threading.Thread(target=lambda: (loop.run_until_complete(main()), loop.close()), daemon=True)
    thread.start()
    assert over.wait(30), "the service does not start"
    try:
        yield found[0], service
    finally:
        loop.call_soon_threadsafe(stop[0].set)
        thread.join(20)
        assert not thread.is_alive()


__all__ = ["BEARER", "FACTS", "STEP", "TOKEN", "ClosedCandles", "Process", "filled", "serving", "write_close"]
