"""The paper account, candle by candle, is the account of the backtest: the same trades, money and equity."""

import json
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from conftest import BTC, ETH, real_candles

from smc_ml.candles import Market
from smc_ml.costs import Costs
from smc_ml.labels.config import LabelingConfig
from smc_ml.labels.outcomes import label_patterns, label_symbols
from smc_ml.live.broker.contract import BrokerError, BrokerRules
from smc_ml.live.broker.paper import PaperBroker
from smc_ml.live.broker.saved_account import restored_account, saved_account
from smc_ml.live.broker.walking import (
    Walked,
    market_closes,
    orders_of_predictions,
    paper_trades,
    walk_account,
)
from smc_ml.patterns.config import PatternConfig
from smc_ml.patterns.detection import detect_patterns
from smc_ml.simulation.config import SimulationConfig
from smc_ml.simulation.market import simulate_market
from smc_ml.stages.backtest import follow_predictions
from smc_ml.trading.account import Backtest
from smc_ml.trading.config import BacktestConfig

LABELS = LabelingConfig(timeframes=("5m",), maximum_bars=30, minimum_bars=2)
PATTERNS = PatternConfig(timeframes=("5m",))
ANY_HOLE = PATTERNS.model_copy(update={"maximum_hole": 100_000})  # labels go on through it, as what is held


class Scene(NamedTuple):
    "What is traded: candles, labels, and predictions that know nothing."

    market: Market
    labels: pd.DataFrame
    predictions: pd.DataFrame
    patterns: PatternConfig = ANY_HOLE
    labeling: LabelingConfig = LABELS
    unfilled: pd.DataFrame | None = None  # labels of limit orders that no price reached, with event_id

    def rules(self, config: BacktestConfig, costs: Costs = Costs()) -> BrokerRules:
        market = self.market
        rules = config, costs, self.labeling, self.patterns
        return BrokerRules(tuple(market), market.timeframe, *rules, market.kind)

    def walk(self, config: BacktestConfig, costs: Costs = Costs(), history: Market | None = None) -> Walked:
        broker = PaperBroker(self.rules(config, costs), history)
        return walk_account(broker, market_closes(self.market), self.orders(config), self.taken_back())

    def orders(self, config: BacktestConfig) -> dict:
        labels, said = self.labels, self.predictions
        if self.unfilled is not None:
            labels = pd.concat([labels, self.unfilled])
            hoped = self.unfilled[["event_id"]].assign(probability=0.6, expected_r=1.0)  # first of all
            said = pd.concat([said, hoped])
        return orders_of_predictions(said, labels, self.market, config, self.labeling)

    def taken_back(self) -> dict:
        "The orders whose zone ended before they had waited as long as they may, by close."
        found: dict = {}
        for one in [] if self.unfilled is None else self.unfilled.to_dict("records"):
            waited = self.market[one["symbol"]].loc[one["time"] : one["exit_at"] - self.market.step]
            if len(waited) < self.labeling.limit_expiry:
                found.setdefault(one["exit_at"], []).append(str(one["event_id"]))
        return found

    def backtest(self, config: BacktestConfig, costs: Costs = Costs()) -> Backtest:
        told = self.predictions, self.labels, self.market, config, costs
        return follow_predictions(*told, ["expected"]).expected


def unfilled_orders(market: Market, found: dict, scene: tuple, first: int) -> pd.DataFrame:
    "Labels of limit orders that were not filled, numbered from `first` on."
    tables = [
        label_patterns(candles, found[symbol], symbol, scene[1], Costs(), "5m", scene[0])
        for symbol, candles in market.items()
    ]
    labels = pd.concat(tables, ignore_index=True)
    labels = labels[~labels["filled"]]
    return labels.assign(event_id=first + np.arange(len(labels)))


def scene_of(
    market: Market, seed: int, patterns: PatternConfig = ANY_HOLE, labeling: LabelingConfig = LABELS
) -> Scene:
    found = {symbol: detect_patterns(candles, PATTERNS, "5m") for symbol, candles in market.items()}
    labels = label_symbols(market, found, labeling, Costs(), patterns)
    rests = labeling.entry != "next_open"
    unfilled = unfilled_orders(market, found, (patterns, labeling), len(labels)) if rests else None
    generator = np.random.default_rng(seed)
    said = labels[["symbol", "time", "event_id"]].assign(
        model="random",
        fold=0,
        target="won",
        probability=generator.uniform(0.3, 0.7, len(labels)),
        expected_r=generator.normal(0.1, 0.2, len(labels)).round(2),  # some are equal
    )
    return Scene(market, labels, said, patterns, labeling, unfilled)


def with_costs_and_holes(candles: pd.DataFrame, seed: int) -> pd.DataFrame:
    "Quotes, funding where it is known, single candles and a day missing."
    generator, rows = np.random.default_rng(seed), len(candles)
    half = candles["close"] * generator.uniform(0.00005, 0.0003, rows)
    known = (np.arange(rows) % 192 == 96) & (generator.random(rows) < 0.8)
    told = candles.assign(
        bid=(candles["close"] - half).where(generator.random(rows) < 0.9),
        ask=candles["close"] + half,
        funding_rate=np.where(known, generator.normal(0, 0.002, rows), np.nan),
    )
    missing = generator.random(rows) < 0.02
    missing[500:700] = True
    missing[:20] = missing[-100:] = False
    return told[~missing]


@pytest.fixture(scope="module")
def simulated() -> dict[str, pd.DataFrame]:
    found = simulate_market(["A", "B", "C"], "2023-01-02", "2023-01-06", SimulationConfig(seed=5))
    return {name: one.candles[["open", "high", "low", "close", "volume"]] for name, one in found.items()}


@pytest.fixture(scope="module")
def rough(simulated) -> Scene:
    "Three simulated symbols with quotes, funding and holes."
    each = {
        name: with_costs_and_holes(candles, place) for place, (name, candles) in enumerate(simulated.items())
    }
    return scene_of(Market(each, "5m"), 3)


def check_same(walked: Walked, expected: Backtest) -> None:
    "Trades, fills and equity of a paper account are those of a backtest, to 1e-9."
    batch, live = expected.trades, paper_trades(walked.fills)
    live = live.set_index(live["order_id"].astype(int)).loc[batch["event_id"]]
    assert len(paper_trades(walked.fills)) == len(batch)
    for name in ("symbol", "entry_at", "exit_at", "exit_reason"):
        assert live[name].astype(str).tolist() == batch[name].astype(str).tolist(), name
    for name in ("entry", "units", "exit_price", "profit", "fees", "slippage", "funding"):
        size = 1e-9 * max(batch[name].abs().max(), 1.0)
        np.testing.assert_allclose(live[name], batch[name], 1e-9, size, err_msg=name)
    at = walked.equity.loc[expected.equity.index]
    for name, scale in (("equity", 1e5), ("drawdown", 1.0), ("exposure", 1.0)):  # of an account of 100,000
        np.testing.assert_allclose(at[name], expected.equity[name], 1e-9, 1e-12 * scale, err_msg=name)


SETTINGS = {
    "fixed risk": {},
    "one place": {"maximum_positions": 1, "slippage_range_share": 0.1, "funding_rate": -0.001},
    "kelly": {
        "sizing": "kelly",
        "kelly_fraction": 0.5,
        "half_spread_rate": 0.0002,
        "maker_fee_rate": -0.0001,
        "maker_entries": True,
        "maker_targets": True,
    },
    "volatility": {"sizing": "volatility", "volatility_window": 100, "leverage_limit": 5.0},
    "leverage": {
        "leverage_limit": 100.0,
        "maximum_position": 100.0,
        "risk_per_trade": 0.03,
        "funding_rate": 0.003,
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_account_is_that_of_the_backtest(rough, name):
    config = BacktestConfig(**SETTINGS[name])
    expected = rough.backtest(config)
    assert len(expected.trades) > 30
    check_same(rough.walk(config), expected)
    if name == "leverage":
        assert set(expected.trades["exit_reason"]) == {"stop", "target", "timeout", "liquidation"}
        assert (expected.trades["funding"] != 0).any()


LIMITS = LABELS.model_copy(update={"entry": "limit_edge", "limit_expiry": 220, "minimum_bars": 0})


@pytest.fixture(scope="module")
def resting(rough) -> Scene:
    "The same candles, entered by limit orders."
    return scene_of(rough.market, 3, labeling=LIMITS)


@pytest.mark.parametrize("name", ["one place", "volatility", "leverage"])
def test_the_account_of_limit_orders_is_that_of_the_backtest(resting, name):
    config = BacktestConfig(**SETTINGS[name])
    expected = resting.backtest(config)
    assert len(expected.trades) > 30 and len(resting.unfilled) > 30 and len(resting.taken_back()) > 0
    opens = resting.market["A"]["open"]
    assert not expected.trades["entry"].isin(opens).all()  # filled within candles
    walked = resting.walk(config)
    check_same(walked, expected)
    said = {fill.reason.partition(" is ")[0] for fill in walked.fills if fill.what == "cancelled"}
    assert {"its zone has ended", "no price reached it within 220 candles"} <= said


@pytest.mark.parametrize("entry", ["next_open", "limit_middle"])
def test_on_real_candles_of_two_symbols(market, entry):
    each = {path.name[:7]: real_candles(path)["2023-03-10":"2023-03-12"] for path in (BTC, ETH)}
    labeling = LABELS.model_copy(update={"entry": entry})
    real = scene_of(Market(each, "5m", kind="perpetual"), 11, PATTERNS, labeling)
    config = BacktestConfig(leverage_limit=20.0, maximum_position=20.0, risk_per_trade=0.02)
    expected = real.backtest(config)
    assert len(expected.trades) > 30
    check_same(real.walk(config), expected)


@pytest.mark.parametrize("entry", ["next_open", "limit_edge"])
def test_an_account_that_is_saved_at_random_closes_goes_on_as_if_it_had_not(rough, resting, entry):
    config = BacktestConfig(sizing="volatility", volatility_window=50, funding_rate=0.001, leverage_limit=3.0)
    scene = rough if entry == "next_open" else resting
    closes, orders, rules = list(market_closes(scene.market)), scene.orders(config), scene.rules(config)
    steady = PaperBroker(rules)
    whole = walk_account(steady, closes, orders)
    cuts = np.sort(np.random.default_rng(2).choice(len(closes), 25, replace=False)).tolist()
    moved, fills, parts = PaperBroker(rules), [], []
    for first, last in pairwise([0, *cuts, len(closes)]):
        part = walk_account(moved, closes[max(first - 3, 0) : last], orders)  # three are told twice
        fills += part.fills
        parts.append(part.equity[min(first, 3) :])
        moved = restored_account(json.loads(json.dumps(saved_account(moved))), rules)
    assert tuple(fill for fill in fills if fill.what != "cancelled") == tuple(
        fill for fill in whole.fills if fill.what != "cancelled"
    )
    pd.testing.assert_frame_equal(pd.concat(parts), whole.equity, check_exact=True)
    assert saved_account(moved) == saved_account(steady)


def test_what_came_before_the_account_is_remembered(rough):
    config = BacktestConfig(sizing="volatility", volatility_window=100, slippage_range_share=0.1)
    begin = rough.market["A"].index[400]
    before = rough.market.map(lambda candles: candles[candles.index < begin])
    after = rough._replace(
        market=rough.market.map(lambda candles: candles[candles.index >= begin]),
        predictions=rough.predictions[rough.predictions["time"] > begin],
    )
    orders = rough._replace(predictions=after.predictions).orders(config)
    broker = PaperBroker(rough.rules(config), before)
    walked = walk_account(broker, market_closes(after.market), orders)
    expected = rough._replace(predictions=after.predictions).backtest(config)
    check_same(walked, expected)


def test_a_hole_that_ends_a_segment_cancels_orders_and_holds_what_is_held(simulated):
    hole = slice(700, 720)
    each = {name: candles.drop(candles.index[hole]) for name, candles in simulated.items()}
    scene = scene_of(Market(each, "5m"), 4, PATTERNS)
    config, edge = BacktestConfig(), simulated["A"].index[hole.start]
    walked, expected = scene.walk(config), scene.backtest(config)
    before = expected.equity.index[expected.equity.index <= edge]
    np.testing.assert_allclose(
        walked.equity.loc[before, "equity"], expected.equity.loc[before, "equity"], 1e-9
    )
    late = [fill for fill in walked.fills if fill.what == "entry" and fill.time > edge]
    assert late and not any(fill.time == simulated["A"].index[hole.stop] for fill in late)


def test_where_the_candles_end_positions_stay_open_at_the_last_price(rough):
    config = BacktestConfig()
    closes, orders = list(market_closes(rough.market))[:600], rough.orders(config)
    broker = PaperBroker(rough.rules(config))
    walked = walk_account(broker, closes, orders)
    held = broker.state().positions
    assert held and broker.waiting.keys() == {each.order_id for each in orders.get(closes[-1].known_at, ())}
    worth = sum(each.margin + each.units * (broker.closes[each.symbol] - each.entry) for each in held)
    assert walked.equity["equity"].iloc[-1] == pytest.approx(broker.free + worth, rel=1e-12)


def test_funding_that_is_carried_on_is_refused_and_nothing_has_changed(rough):
    closes = list(market_closes(rough.market))[:3]
    broker = PaperBroker(rough.rules(BacktestConfig()))
    for closed, rate in zip(closes, (0.001, np.nan, 0.001), strict=True):
        for row in closed.candles.values():
            row["funding_rate"] = rate
        broker.take(closed)
    before = saved_account(broker)
    again = market_closes(rough.market.map(lambda candles: candles[3:4].assign(funding_rate=0.001)))
    with pytest.raises(BrokerError, match="A: funding is paid at .* and in the candle before"):
        broker.take(next(again))
    assert saved_account(broker) == before
