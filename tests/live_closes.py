"""Closes of a live process that never was: the same for the same number, with all that a close may hold.

A process that writes them into a book, for tests that kill it, goes on after the last close that it finds.
"""

from typing import Any

import numpy as np
import pandas as pd

from smc_ml.live.messages import (
    AccountState,
    Decision,
    Fill,
    Forecast,
    Holding,
    ModelEvent,
    Notice,
    Order,
    Prediction,
    PredictionOutcome,
    Signal,
)
from smc_ml.live.store.live_store import LiveStore

FIRST, STEP = pd.Timestamp("2023-10-01", tz="UTC"), pd.Timedelta("5min")
ODD = (0.1 + 0.2, np.nan, np.inf, -np.inf, 5e-324, 1.7976931348623157e308, -1e-300, 0.0, np.float64(2) / 3)
WORDS = ("", "plain", "Größe €😀", "'; drop table signals; --", 'a\nb\t"c"', "x" * 3000)


def time_of(number: int) -> pd.Timestamp:
    return FIRST + number * STEP


def decision_at(number: int, place: int = 0) -> Decision:
    rng, at = np.random.default_rng([number, place]), time_of(number)
    formed = at - int(rng.integers(1, 9)) * STEP + pd.Timedelta(int(rng.integers(0, 3)), "ns")
    top, bottom, stop, strength = rng.normal(100, 5, 4)
    direction = int(rng.choice([-1, 1]))
    return Decision(
        f"SIM-{place}", at, number, direction, "order_block", "15m", formed, at, top, bottom, stop, strength
    )


def signal_of(decision: Decision, side: str = "LONG") -> Signal:
    facts = decision.key, decision.symbol, decision.timeframe, decision.known_at, "b1", side, ""
    return Signal(*facts, 0.6, "plain", 0.2, -0.1, 0.5, 0.03, {"1h": 1 / 3}, 0.01, "f", decision)


def prediction_of(decision: Decision) -> Prediction:
    facts = decision.key, "b1", decision.symbol, decision.timeframe, decision.known_at, "champion"
    return Prediction(*facts, 0.6, 0.5, 0.7, 0.2, 0.03, {"logistic": 0.61}, "", "f", decision)


def order_of(signal: Signal) -> Order:
    facts = f"o-{signal.key}", signal.key, signal.symbol, "BUY", signal.known_at
    return Order(*facts, 0.1, 99.0, "", signal.confidence, signal.expected_r)


def close_at(number: int) -> dict[str, Any]:
    "All of a close: what was decided at it, and what became of the close before."
    rng, at = np.random.default_rng(number), time_of(number)
    made = [decision_at(number, place) for place in range(number % 3)]
    before = [decision_at(number - 1, place) for place in range((number - 1) % 3)] if number else []
    signals = [signal_of(decision) for decision in made]
    entered = [order_of(signal_of(decision)) for decision in before]
    fills = [
        Fill(order.order_id, order.symbol, at - STEP, at, "entry", 1.0, 100.0, 0.05, 0.01, 0.0, np.nan)
        for order in entered
    ]
    held = tuple(
        Holding(order.symbol, order.order_id, at - STEP, 100.0, 1.0, 99.0, 103.0, 50.0, 1)
        for order in entered
    )
    outcomes = [
        PredictionOutcome(prediction_of(decision).prediction_id, at, at - STEP, at, "win", True, 1.5)
        for decision in before
    ]
    equity = 10_000.0 + float(rng.normal())
    return {
        "predictions": [prediction_of(decision) for decision in made],
        "outcomes": outcomes,
        "signals": signals,
        "orders": [order_of(signal) for signal in signals],
        "fills": fills,
        "account": AccountState(at, equity, equity - 50.0 * len(held), -0.01, 0.1, held),
        "states": {"broker": str(number).encode(), "calculator": rng.bytes(4000)},
    }


def odd_messages(value: float, word: str) -> list[Any]:
    "One message of each kind, of odd numbers and words, in the order in which they may be written."
    at = FIRST + pd.Timedelta(1, "ns")
    decision = decision_at(3)._replace(known_at=at, top=value, bottom=0.0 - value, kind=word, strength=np.nan)
    prediction = prediction_of(decision)._replace(
        probability=value, low=0.0 - value, models={"a": value, word: 0.1}, reason=word
    )
    signal = signal_of(decision)._replace(
        confidence=value, returns={"4h": value}, reason=word, risk=0.0 - value
    )
    order = order_of(signal)._replace(position=value, reason=word)
    fill = Fill(order.order_id, word, at, at, "stop", value, value, 0.0 - value, 0.0, 0.0, value, word)
    held = Holding(word, "o", at, value, 0.0 - value, value, value, value, 2**40)
    never = pd.NaT
    return [
        decision,
        prediction,
        PredictionOutcome(prediction.prediction_id, at, never, never, word, False, value),
        Forecast("SIM", at, "b1", word, "1h", {"expected_return": value}),
        signal,
        order,
        order._replace(order_id="close", signal_key="", action="CLOSE"),
        fill,
        AccountState(at, value, 0.0 - value, value, value, (held, held._replace(symbol="other"))),
        Notice(at, "feed", "info", word),
        ModelEvent(at, "b1", "champion", "loaded", word),
    ]


def write_closes(place: str, until: int, written: Any = None) -> None:
    "Go on after the last close of a book, as a restarted process does; `written.value` counts what it did."
    with LiveStore(place) as store:
        last = store.last_close()
        begin = 0 if last is None else round((last - FIRST) / STEP) + 1
        for number in range(begin, until):
            store.close_of(time_of(number), **close_at(number))
            if written is not None:
                written.value += 1
