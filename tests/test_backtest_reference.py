"""The account agrees with a slow simulator that walks candle by candle, written from the rules alone."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest

from smc_ml.candles import Market
from smc_ml.costs import Costs
from smc_ml.labels.barriers import EXIT_REASONS, barrier_exits, replay
from smc_ml.trading.account import run_backtest, select_trades
from smc_ml.trading.config import SCENARIOS, BacktestConfig
from smc_ml.trading.costs import charge_costs, daily_volatility, liquidate, liquidation_distance

# a case is a stretch of 48 candles in up to three symbols; an account lives through five
STRETCHES, CANDLES = 5, 5 * 48


@dataclass
class Plan:
    "What a trader decides before the entry; nothing of what comes after."

    event: int
    symbol: str
    row: int  # of the candle at whose open it is entered
    side: int
    stop: float
    target: float
    limit: int  # candles until it is given up
    expected_r: float


@dataclass
class Position:
    plan: Plan
    units: float  # signed
    entry: float
    liquidation: float
    fees: float
    paid: float  # cash spent net of what came back, funding included
    funding: float = 0.0


class Simulator:
    "An account that is run candle by candle, written from the rules alone."

    def __init__(self, markets, hours, config, costs):
        self.markets, self.hours, self.config, self.costs = markets, hours, config, costs
        self.cash, self.open, self.done = config.initial_cash, {}, []

    def slippage(self, resting):
        return 0.0 if resting else self.costs.slippage_rate + self.config.half_spread_rate

    def fee(self, resting):
        return (
            self.config.maker_fee_rate
            if resting and self.config.maker_fee_rate is not None
            else self.costs.fee_rate
        )

    def trade(self, units, price, resting):
        "Buy (or sell) units; returns cash spent and fee."
        fill = price * (1 + self.slippage(resting)) if units > 0 else price * (1 - self.slippage(resting))
        fee = abs(units) * fill * self.fee(resting)
        self.cash -= units * fill + fee
        return units * fill + fee, fee

    def leave(self, symbol, row, price, reason):
        position = self.open.pop(symbol)
        spent, fee = self.trade(-position.units, price, reason == "target" and self.config.maker_targets)
        profit = -(position.paid + spent)
        self.done.append(
            (
                position.plan.event,
                row,
                reason,
                price,
                position.units,
                position.fees + fee,
                position.funding,
                profit,
            )
        )

    def at_open(self, row, plans):
        if row and self.hours[row] != self.hours[row - 1]:  # a funding time: what is held since before pays
            for symbol, position in self.open.items():
                due = position.units * self.markets[symbol]["open"][row] * self.config.funding_rate
                self.cash, position.funding, position.paid = (
                    self.cash - due,
                    position.funding + due,
                    position.paid + due,
                )
        equity = self.cash + sum(
            position.units * self.markets[symbol]["open"][row] for symbol, position in self.open.items()
        )
        for symbol in list(self.open):
            position = self.open[symbol]
            if row - position.plan.row == position.plan.limit:
                self.leave(symbol, row, self.markets[symbol]["open"][row], "timeout")
        self.enter(row, plans, equity)

    def enter(self, row, plans, equity):
        wanted, chosen = (
            sorted(
                (
                    plan
                    for plan in plans
                    if plan.row == row and plan.expected_r > self.config.minimum_expected_r
                ),
                key=lambda plan: -plan.expected_r,
            ),
            [],
        )
        places = min(len(self.markets), self.config.maximum_positions or len(self.markets))
        for plan in wanted:
            occupied = {*self.open, *(other.symbol for other in chosen)}
            if plan.symbol in occupied or len(occupied) >= places:
                continue
            chosen.append(plan)
        for plan in chosen:
            plan.share = self.share(plan, row, places)
        for plan in sorted(chosen, key=lambda plan: (plan.side * plan.share, plan.symbol)):
            self.buy(plan, row, equity)

    def share(self, plan, row, places):
        entry = self.markets[plan.symbol]["open"][row]
        return min(
            self.config.risk_per_trade / (abs(entry - plan.stop) / entry),
            self.config.maximum_position,
            self.config.leverage_limit / places,
        )

    def buy(self, plan, row, equity):
        entry = self.markets[plan.symbol]["open"][row]
        units = plan.side * plan.share * max(equity, 0.0) / entry
        if plan.side > 0:  # cash, and what may be borrowed
            most = max(self.cash + (self.config.leverage_limit - 1) * equity, 0.0)
            units = min(
                units,
                most
                / (
                    entry
                    * (1 + self.slippage(self.config.maker_entries))
                    * (1 + self.fee(self.config.maker_entries))
                ),
            )
        if units == 0:
            return
        spent, fee = self.trade(units, entry, self.config.maker_entries)
        margin_lost = 1 / self.config.leverage_limit - self.config.maintenance_margin
        self.open[plan.symbol] = Position(
            plan, units, entry, entry - plan.side * entry * margin_lost, fee, spent
        )

    def within(self, row):
        for symbol in list(self.open):
            position, candle = (
                self.open[symbol],
                {name: values[row] for name, values in self.markets[symbol].items()},
            )
            plan, adverse, open_ = position.plan, -position.plan.side, candle["open"]
            worst, best = (
                (candle["low"], candle["high"]) if plan.side > 0 else (candle["high"], candle["low"])
            )
            first, reason = (
                (plan.stop, "stop")
                if adverse * plan.stop < adverse * position.liquidation
                else (position.liquidation, "liquidation")
            )  # price passes the nearer one first
            if adverse * open_ >= adverse * first:
                self.leave(symbol, row, open_, reason)
            elif plan.side * open_ >= plan.side * plan.target:
                self.leave(symbol, row, open_, "target")
            elif adverse * worst >= adverse * first:
                self.leave(symbol, row, first, reason)
            elif plan.side * best >= plan.side * plan.target:
                self.leave(symbol, row, plan.target, "target")

    def run(self, plans, rows):
        equity = []
        for row in range(rows):
            self.at_open(row, plans)
            self.within(row)
            equity.append(
                self.cash
                + sum(
                    position.units * self.markets[symbol]["close"][row]
                    for symbol, position in self.open.items()
                )
            )
        return equity


def random_market(generator, rows=CANDLES):
    "Jumpy candles with gaps, so that every kind of exit happens."
    close = 100 * np.exp(generator.normal(0, 0.012, rows).cumsum())
    open_ = np.r_[100.0, close[:-1]] * np.exp(
        generator.normal(0, 0.003, rows) * (generator.random(rows) < 0.4)
        + generator.normal(0, 0.06, rows) * (generator.random(rows) < 0.06)
    )
    spread = np.abs(generator.normal(0, 0.008, (2, rows)))
    return {
        "open": open_,
        "high": np.maximum(open_, close) * (1 + spread[0]),
        "low": np.minimum(open_, close) * (1 - spread[1]),
        "close": close,
    }


def random_plans(generator, markets, count):
    plans = []
    for event in range(count):
        symbol, row, side = (
            str(generator.choice(list(markets))),
            int(generator.integers(0, CANDLES - 14)),
            int(generator.choice([-1, 1])),
        )
        entry = markets[symbol]["open"][row]
        plans.append(
            Plan(
                event,
                symbol,
                row,
                side,
                entry * (1 - side * generator.uniform(0.004, 0.3 if generator.random() < 0.3 else 0.04)),
                entry * (1 + side * generator.uniform(0.004, 0.05)),
                int(generator.integers(1, 12)),
                float(generator.normal(0.3, 1)),
            )
        )
    return plans


def labelled(plans, markets, times):
    "The table that the label kernel makes of the plans; those not over by the last candle are left out."
    rows, step = [], times[1] - times[0]
    for plan in plans:
        market = markets[plan.symbol]
        exits, reasons, prices, *_ = barrier_exits(
            market["open"],
            market["high"],
            market["low"],
            np.array([plan.row]),
            np.array([plan.side]),
            np.array([plan.stop]),
            np.array([plan.target]),
            plan.limit,
        )
        if exits[0] < 0:
            continue
        reason = EXIT_REASONS[reasons[0]]
        rows.append(
            {
                "event_id": plan.event,
                "symbol": plan.symbol,
                "direction": plan.side,
                "time": times[plan.row],
                "entry_at": times[plan.row],
                "entry": market["open"][plan.row],
                "stop": plan.stop,
                "target": plan.target,
                "exit_at": times[exits[0]] + (step if reason != "timeout" else pd.Timedelta(0)),
                "exit_price": prices[0],
                "exit_reason": reason,
            }
        )
    return pd.DataFrame(rows)


def random_settings(generator):
    config = BacktestConfig(
        risk_per_trade=float(generator.uniform(0.002, 0.1)),
        maximum_position=float(generator.choice([0.5, 2.0, 8.0])),
        leverage_limit=float(generator.choice([1.0, 3.0, 10.0, 25.0])),
        maximum_positions=[None, 1, 2][generator.integers(3)],
        maker_fee_rate=[None, 0.0002, -0.0001][generator.integers(3)],
        maker_entries=bool(generator.integers(2)),
        maker_targets=bool(generator.integers(2)),
        half_spread_rate=float(generator.choice([0.0, 0.0003])),
        funding_rate=float(generator.choice([0.0, 0.001, -0.002])),
    )
    return config, Costs(
        fee_rate=float(generator.choice([0.0, 0.0004, 0.002])),
        slippage_rate=float(generator.choice([0.0, 0.0001])),
    )


def case(seed, timeframe="5m"):
    generator = np.random.default_rng(seed)
    markets = {symbol: random_market(generator) for symbol in "ABC"[: generator.integers(1, 4)]}
    step = Market({}, timeframe).step
    times = pd.date_range("2024-01-01", periods=CANDLES, freq=step, tz="UTC")
    times += step * int(generator.integers(0, 288))
    config, costs = random_settings(generator)
    plans = random_plans(generator, markets, 12 * STRETCHES)
    candles = Market(
        {symbol: pd.DataFrame(market, index=times) for symbol, market in markets.items()}, timeframe
    )
    labels = labelled(plans, markets, times)
    plans, traded = [plan for plan in plans if plan.event in set(labels["event_id"])], set(labels["symbol"])
    return (
        {symbol: markets[symbol] for symbol in markets if symbol in traded},
        times,
        candles,
        config,
        costs,
        plans,
        labels,
    )


def compare(seed, timeframe="5m"):
    "Assert that account and simulator agree; returns the reasons of the exits."
    markets, times, candles, config, costs, plans, labels = case(seed, timeframe)
    predictions = pd.DataFrame(
        {
            "event_id": [plan.event for plan in plans],
            "probability": 0.5,
            "expected_r": [plan.expected_r for plan in plans],
        }
    )
    trades = select_trades(predictions, liquidate(labels, candles, config), config, costs)
    account = run_backtest(trades, candles, times[0], times[-1], config, costs)
    simulator = Simulator(markets, [time.floor("8h") for time in times], config, costs)
    equity = simulator.run(plans, CANDLES)
    booked, expected = account.trades.sort_values("event_id"), sorted(simulator.done)
    assert booked["event_id"].tolist() == [done[0] for done in expected], seed
    assert booked["exit_reason"].tolist() == [done[2] for done in expected], seed
    at = [times[done[1]] + (candles.step if done[2] != "timeout" else pd.Timedelta(0)) for done in expected]
    assert booked["exit_at"].tolist() == at, seed
    if expected:
        np.testing.assert_allclose(
            booked[["exit_price", "units"]],
            [[done[3], done[4]] for done in expected],
            rtol=1e-9,
            err_msg=str(seed),
        )
        np.testing.assert_allclose(
            booked[["fees", "funding", "profit"]],
            [done[5:] for done in expected],
            rtol=1e-8,
            atol=1e-6,
            err_msg=str(seed),
        )
    assert (account.equity.index == times + candles.step).all()
    np.testing.assert_allclose(account.equity["equity"], equity, rtol=1e-9, atol=1e-6, err_msg=str(seed))
    return booked["exit_reason"].tolist()


@pytest.mark.parametrize("timeframe", ["1m", "15m", "1h"])
def test_account_and_simulator_agree_on_other_bases(timeframe):
    reasons = [reason for seed in range(30) for reason in compare(seed, timeframe)]
    assert set(reasons) == {"stop", "target", "timeout", "liquidation"}


@pytest.mark.parametrize("timeframe, a_day", [("1m", 1440), ("5m", 288), ("15m", 96), ("1h", 24)])
def test_daily_volatility_and_the_size_that_follows_it_know_the_base(timeframe, a_day):
    "Closes that alternate by one percent: the deviation of a candle is known, a day has so many candles."
    step, close = Market({}, timeframe).step, 100 * np.exp(0.01 * (np.arange(200) % 2))
    times = pd.date_range("2024-01-01", periods=200, freq=step, tz="UTC", name="open_time")
    series = pd.DataFrame({"open": 100.0, "high": 102.0, "low": 99.0, "close": close}, index=times)
    label = {"symbol": "A", "direction": 1, "time": times[90], "entry_at": times[90], "entry": 100.0}
    exit = {
        "stop": 98.0,
        "target": 103.0,
        "exit_at": times[95],
        "exit_price": 100.0,
        "exit_reason": "timeout",
    }
    labels = pd.DataFrame([label | exit | {"event_id": 0}])
    day = 0.01 * np.sqrt(10 / 9 * a_day)
    for said in (timeframe, None):
        np.testing.assert_allclose(daily_volatility(labels, series, 10, said), day)
    predictions = pd.DataFrame({"event_id": [0], "probability": 0.5, "expected_r": 1.0})
    config = BacktestConfig(
        sizing="volatility", volatility_window=10, maximum_position=9.0, leverage_limit=9.0
    )
    trades = select_trades(predictions, labels, config, market=Market({"A": series}, timeframe))
    np.testing.assert_allclose(trades["position"], 0.01 / day)


def slow_range(market, row, window=14):
    "Mean of the true ranges of the candles up to a row."
    rows, ranges = range(row - window + 1, row + 1), []
    for past in rows:
        before, high, low = market["close"][past - 1], market["high"][past], market["low"][past]
        ranges.append(max(high, before) - min(low, before))
    return sum(ranges) / window


def test_slippage_reads_the_range_of_the_candles_before_the_entry():
    "On rough candles; the entry candle itself, and all that follows, changes nothing."
    generator, compared = np.random.default_rng(1), 0
    times = pd.date_range("2024-01-01", periods=CANDLES, freq="5min", tz="UTC")
    config, costs = (
        BacktestConfig(slippage_range_share=0.1, half_spread_rate=0.0003),
        Costs(slippage_rate=0.0001),
    )
    for _ in range(4):
        market = random_market(generator)
        plans = [plan for plan in random_plans(generator, {"A": market}, 40) if plan.row > 14]
        labels, candles = labelled(plans, {"A": market}, times), pd.DataFrame(market, times)
        charged = charge_costs(labels, Market({"A": candles}, "5m"), config, costs)
        rows = times.get_indexer(labels["entry_at"])
        expected = [0.0004 + 0.1 * slow_range(market, row - 1) / market["open"][row] for row in rows]
        for side in ("entry_slippage", "exit_slippage"):
            np.testing.assert_allclose(charged[side], expected, rtol=1e-12)
        for number, row in enumerate(rows[:5]):
            wild = candles.copy()
            wild.iloc[row:, [1, 2]] = wild.iloc[row:][["high", "low"]] * [1.5, 0.5]
            one = charge_costs(labels.iloc[[number]], Market({"A": wild}, "5m"), config, costs)
            assert one["entry_slippage"].iloc[0] == charged["entry_slippage"].iloc[number]
        compared += len(rows)
    assert compared > 100


def test_account_and_simulator_agree_on_a_thousand_random_cases():
    reasons = pd.Series(
        [reason for seed in range(1000 // STRETCHES) for reason in compare(seed)]
    ).value_counts()
    assert (
        set(reasons.index) == {"stop", "target", "timeout", "liquidation"}
        and reasons.min() > 100
        and reasons.sum() > 2000
    ), reasons


@pytest.mark.parametrize("leverage", [1.0, 3.0, 10.0])
def test_a_stop_nearer_than_the_liquidation_price_makes_liquidation_impossible(leverage):
    config = BacktestConfig(leverage_limit=leverage)
    for seed in range(60):
        *_, candles, _, _, _, labels = case(seed)
        near = labels[
            (labels["entry"] - labels["stop"]).abs() / labels["entry"] < liquidation_distance(config)
        ]
        assert not (liquidate(near, candles, config)["exit_reason"] == "liquidation").any()


def test_no_trade_is_better_in_the_worst_case_or_worse_in_the_best_case_than_in_the_base_case():
    better = 0
    for seed in range(20):
        _, times, candles, config, costs, plans, labels = case(seed)
        config = config.model_copy(
            update={"leverage_limit": 1.0, "risk_per_trade": 0.01, "maker_fee_rate": None}
        )
        touched = labels.assign(
            ambiguous=(labels["exit_reason"] == "stop") & (np.arange(len(labels)) % 2 == 0)
        )
        trades = select_trades(
            pd.DataFrame({"event_id": labels["event_id"], "probability": 0.5, "expected_r": 1.0}),
            touched,
            config,
            costs,
        )
        results = [
            run_backtest(trades, candles, times[0], times[-1], config, costs, scenario).trades.set_index(
                "event_id"
            )["realised_r"]
            for scenario in SCENARIOS
        ]
        assert (
            len(trades) == len(results[0])
            and (results[0] <= results[1] + 1e-12).all()
            and (results[1] <= results[2] + 1e-12).all()
        )
        better += (results[1] < results[2] - 1e-9).sum() + (results[0] < results[1] - 1e-9).sum()
    assert better > 100


# ---- candles in doubt, settled by their minutes


class MinuteSimulator(Simulator):
    "Where a candle reaches both barriers, it asks its minutes which of them came first."

    settled = 0

    @staticmethod
    def reach(plan, high, low):
        "Whether the stop, and whether the target, is reached."
        if plan.side > 0:
            return low <= plan.stop, high >= plan.target
        return high >= plan.stop, low <= plan.target

    def within(self, row):
        for symbol in list(self.open):
            plan, market = self.open[symbol].plan, self.markets[symbol]
            open_ = market["open"][row]
            gone = plan.side * (open_ - plan.stop) <= 0 or plan.side * (open_ - plan.target) >= 0
            if gone or not all(self.reach(plan, market["high"][row], market["low"][row])):
                continue
            minutes = [self.reach(plan, high, low) for _, high, low in market["minutes"][row]]
            touches = [touch for touch in minutes if any(touch)]
            if touches[0] == (False, True):
                self.leave(symbol, row, plan.target, "target")
                self.settled += 1
        super().within(row)


def minutes_of(market, generator):
    """A course without gaps through each candle in five minutes, to its high or its low first.

    Axes: candles, minutes, and open, high, low.
    """
    up = generator.random(CANDLES) < 0.5
    closes = np.column_stack(
        [
            np.where(up, market["high"], market["low"]),
            np.where(up, market["low"], market["high"]),
            *[market["close"]] * 3,
        ]
    )
    opens = np.column_stack([market["open"], closes[:, :-1]])
    return np.stack([opens, np.maximum(opens, closes), np.minimum(opens, closes)], axis=2)


def settled_label(label, plan, market):
    "The label with the exit that the label kernel finds on the minutes, if it ended in doubt."
    base, finer, one = (
        np.stack([market[name] for name in ("open", "high", "low")]),
        np.ascontiguousarray(market["minutes"].reshape(-1, 3).T),
        lambda value: np.array([value]),
    )
    plan_of = (one(plan.side), one(plan.stop), one(plan.target))
    exits, _, _, _, _, ambiguous = barrier_exits(*base, one(plan.row), *plan_of, plan.limit)
    if not ambiguous[0]:
        return label
    held = exits[0] > plan.row
    row, reason, price, _, _, doubt = replay(
        base,
        finer,
        5,
        one(plan.row),
        exits,
        one(-1 if held else 5 * plan.row),
        one(5 * exits[0] if held else -1),
        plan_of[0],
        one(market["open"][plan.row]),
        *plan_of[1:],
    )
    return label | ({} if doubt[0] else {"exit_price": price[0], "exit_reason": EXIT_REASONS[reason[0]]})


def test_account_and_simulator_agree_where_minutes_settle_what_was_in_doubt():
    settled = 0
    for seed in range(25):
        markets, times, candles, config, costs, plans, _ = case(seed)
        for plan in plans:  # barriers near enough to lie in one candle
            entry = markets[plan.symbol]["open"][plan.row]
            plan.stop, plan.target = (entry + (price - entry) * 0.3 for price in (plan.stop, plan.target))
        generator, config = np.random.default_rng(seed), config.model_copy(update={"leverage_limit": 1.0})
        markets = {
            symbol: market | {"minutes": minutes_of(market, generator)} for symbol, market in markets.items()
        }
        plan_of = {plan.event: plan for plan in plans}
        labels = pd.DataFrame(
            [
                settled_label(label, plan_of[label["event_id"]], markets[label["symbol"]])
                for label in labelled(plans, markets, times).to_dict("records")
            ]
        )
        predictions = pd.DataFrame(
            {
                "event_id": [plan.event for plan in plans],
                "probability": 0.5,
                "expected_r": [plan.expected_r for plan in plans],
            }
        )
        account = run_backtest(
            select_trades(predictions, labels, config, costs), candles, times[0], times[-1], config, costs
        )
        simulator = MinuteSimulator(markets, [time.floor("8h") for time in times], config, costs)
        equity, booked = simulator.run(plans, CANDLES), account.trades.sort_values("event_id")
        assert booked[["event_id", "exit_reason"]].to_numpy().tolist() == [
            [done[0], done[2]] for done in sorted(simulator.done)
        ], seed
        np.testing.assert_allclose(
            booked["exit_price"], [done[3] for done in sorted(simulator.done)], rtol=1e-9, err_msg=str(seed)
        )
        np.testing.assert_allclose(account.equity["equity"], equity, rtol=1e-9, atol=1e-6, err_msg=str(seed))
        settled += simulator.settled
    assert settled > 30, settled
