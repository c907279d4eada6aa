"""The paper account, candle by candle, is the account of the backtest: the same trades, money and equity."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest

from smc_ml.candles import Market, average_true_range
from smc_ml.costs import Costs
from smc_ml.labels.config import LabelingConfig
from smc_ml.labels.outcomes import label_symbols
from smc_ml.live.broker.contract import BrokerRules
from smc_ml.live.broker.paper import PaperBroker
from smc_ml.live.messages import ClosedCandles, Fill, Order
from smc_ml.patterns.config import PatternConfig
from smc_ml.patterns.detection import detect_patterns
from smc_ml.simulation.config import SimulationConfig
from smc_ml.simulation.market import simulate_market
from smc_ml.stages.backtest import follow_predictions
from smc_ml.trading.account import Backtest
from smc_ml.trading.config import BacktestConfig

LABELS = LabelingConfig(timeframes=("5m",), maximum_bars=30, minimum_bars=2)
ANY_HOLE = PatternConfig(
    timeframes=("5m",), maximum_hole=100_000
)  # labels go on through any, as what is held


class Scene(NamedTuple):
    "What is traded: candles, labels, and predictions that know nothing."

    market: Market
    labels: pd.DataFrame
    predictions: pd.DataFrame


def scene_of(market: Market, seed: int, labels: LabelingConfig = LABELS) -> Scene:
    rules = PatternConfig(timeframes=("5m",))
    patterns = {symbol: detect_patterns(candles, rules, "5m") for symbol, candles in market.items()}
    labelled = label_symbols(market, patterns, labels, Costs(), ANY_HOLE)
    generator = np.random.default_rng(seed)
    said = labelled[["symbol", "time", "event_id"]].assign(
        model="random",
        fold=0,
        target="won",
        probability=generator.uniform(0.3, 0.7, len(labelled)),
        expected_r=generator.normal(0.1, 0.2, len(labelled)).round(2),  # some are equal
    )
    return Scene(market, labelled, said)


def with_costs_and_holes(candles: pd.DataFrame, seed: int) -> pd.DataFrame:
    "Quotes, funding where it is known, single candles and a day missing."
    generator = np.random.default_rng(seed)
    half = candles["close"] * generator.uniform(0.00005, 0.0003, len(candles))
    known = (np.arange(len(candles)) % 192 == 96) & (generator.random(len(candles)) < 0.8)
    told = candles.assign(
        bid=(candles["close"] - half).where(generator.random(len(candles)) < 0.9),
        ask=candles["close"] + half,
        funding_rate=np.where(known, generator.normal(0, 0.002, len(candles)), np.nan),
    )
    missing = generator.random(len(candles)) < 0.02
    missing[1000:1300] = True
    missing[:20] = missing[-100:] = False
    return told[~missing]


@pytest.fixture(scope="module")
def rough() -> Scene:
    "Three simulated symbols with holes."
    found = simulate_market(["A", "B", "C"], "2023-01-02", "2023-01-10", SimulationConfig(seed=5))
    market = {
        symbol: with_costs_and_holes(one.candles[["open", "high", "low", "close", "volume"]], place)
        for place, (symbol, one) in enumerate(found.items())
    }
    return scene_of(Market(market, "5m"), 3)


def rules_of(
    scene: Scene, config: BacktestConfig, costs: Costs, labels: LabelingConfig = LABELS
) -> BrokerRules:
    market = scene.market
    return BrokerRules(tuple(market), market.timeframe, config, costs, labels, ANY_HOLE, market.kind)


def orders_of(
    scene: Scene, config: BacktestConfig, labels: LabelingConfig = LABELS
) -> dict[pd.Timestamp, list[Order]]:
    "The orders that a signal of each prediction would be, by the close of their decision."
    found: dict[pd.Timestamp, list[Order]] = {}
    events = scene.predictions.merge(scene.labels, on=["event_id", "symbol", "time"])
    buffers = {
        symbol: LABELS.stop_buffer * average_true_range(candles) for symbol, candles in scene.market.items()
    }
    for event in events[events["expected_r"] > config.minimum_expected_r].itertuples():
        edge = event.bottom if event.direction > 0 else event.top
        stop = edge - event.direction * buffers[event.symbol][event.row]
        action, name = "BUY" if event.direction > 0 else "SELL", str(event.event_id)
        said = event.probability, event.expected_r
        found.setdefault(event.time, []).append(
            Order(name, name, event.symbol, action, event.time, 0.0, stop, "", *said)
        )
    return found


def closes_of(market: Market) -> Iterator[ClosedCandles]:
    "The candles of a market, close by close."
    rows: dict[pd.Timestamp, dict[str, dict]] = {}
    for symbol, candles in market.items():
        for row in candles.reset_index().to_dict("records"):
            rows.setdefault(row["open_time"], {})[symbol] = row
    for time in sorted(rows):
        yield ClosedCandles(time + market.step, rows[time])


def lived(broker: PaperBroker, closes, orders) -> tuple[list[Fill], pd.DataFrame]:
    "What happened, and the account at each close."
    fills, states = [], {}
    for closed in closes:
        fills += broker.take(closed)
        states[closed.known_at] = broker.state()
        for order in orders.get(closed.known_at, ()):
            broker.place(order)
    rows = [(each.equity, each.drawdown, each.exposure) for each in states.values()]
    return fills, pd.DataFrame(rows, pd.Index(states), ["equity", "drawdown", "exposure"])


def trades_of(fills: list[Fill]) -> pd.DataFrame:
    "Entry and exit of each order side by side."
    entries = {fill.order_id: fill for fill in fills if fill.what == "entry"}
    exits = {fill.order_id: fill for fill in fills if fill.what not in ("entry", "cancelled")}
    return pd.DataFrame(
        [
            {
                "event_id": int(name),
                "symbol": exit.symbol,
                "entry_at": entries[name].time,
                "entry": entries[name].price,
                "units": entries[name].units,
                "exit_at": exit.time,
                "exit_price": exit.price,
                "exit_reason": exit.what,
                "profit": exit.profit,
                "fees": entries[name].fee + exit.fee,
                "slippage": entries[name].slippage + exit.slippage,
                "funding": exit.funding,
            }
            for name, exit in exits.items()
        ]
    )


def check_same(fills: list[Fill], account: pd.DataFrame, expected: Backtest) -> None:
    "Trades, fills and equity of a paper account are those of a backtest, to 1e-9."
    batch = expected.trades
    live = trades_of(fills).set_index("event_id").loc[batch["event_id"]].reset_index()
    for name in ("symbol", "entry_at", "exit_at", "exit_reason"):
        assert live[name].astype(str).tolist() == batch[name].astype(str).tolist(), name
    scale = {"profit": batch["profit"].abs().max(), "funding": max(batch["funding"].abs().max(), 1.0)}
    for name in ("entry", "units", "exit_price", "profit", "fees", "slippage", "funding"):
        np.testing.assert_allclose(live[name], batch[name], 1e-9, 1e-9 * scale.get(name, 0.0), err_msg=name)
    for name in ("equity", "drawdown", "exposure"):
        at = expected.equity.index
        np.testing.assert_allclose(account.loc[at, name], expected.equity[name], 1e-9, 1e-7, err_msg=name)


def batch_of(scene: Scene, config: BacktestConfig, costs: Costs) -> Backtest:
    return follow_predictions(
        scene.predictions, scene.labels, scene.market, config, costs, ["expected"]
    ).expected


SETTINGS = {
    "fixed risk": {},
    "one place": {"maximum_positions": 1, "minimum_expected_r": 0.1},
    "kelly": {"sizing": "kelly", "kelly_fraction": 0.5, "half_spread_rate": 0.0002},
    "volatility": {"sizing": "volatility", "volatility_window": 100, "leverage_limit": 5.0},
    "leverage": {
        "leverage_limit": 100.0,
        "maximum_position": 60.0,
        "risk_per_trade": 0.03,
        "funding_rate": 0.003,
    },
    "maker": {"maker_fee_rate": -0.0001, "maker_entries": True, "maker_targets": True},
    "range": {"slippage_range_share": 0.1, "maker_targets": True, "funding_rate": -0.001},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_account_is_that_of_the_backtest(rough, name):
    config, costs = BacktestConfig(**SETTINGS[name]), Costs()
    expected = batch_of(rough, config, costs)
    assert len(expected.trades) > 60
    broker = PaperBroker(rules_of(rough, config, costs))
    fills, account = lived(broker, closes_of(rough.market), orders_of(rough, config))
    check_same(fills, account, expected)
    if name == "leverage":
        assert set(expected.trades["exit_reason"]) == {"stop", "target", "timeout", "liquidation"}
        assert (expected.trades["funding"] != 0).any()
