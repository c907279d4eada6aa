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
    bankrupt: float  # the price at which the margin is gone
    fees: float
    costs: float  # of the entry
    margin: float
    funding: float = 0.0

    def worth(self, price):
        "What would come back at a price, before the costs of the exit."
        return self.margin + self.units * (price - self.entry)


class Simulator:
    "An account that is run candle by candle, written from the rules alone."

    def __init__(self, markets, hours, config, costs):
        self.markets, self.hours, self.config, self.costs = markets, hours, config, costs
        self.free, self.open, self.done = config.initial_cash, {}, []

    def slippage(self, symbol, row, resting):
        "Slippage and half the spread of the last quotes known, those at the close of a row; -1: none yet."
        if resting:
            return 0.0
        half = self.markets[symbol]["half"][row] if row >= 0 else np.nan
        return self.costs.slippage_rate + (self.config.half_spread_rate if np.isnan(half) else half)

    def fee(self, resting):
        return (
            self.config.maker_fee_rate
            if resting and self.config.maker_fee_rate is not None
            else self.costs.fee_rate
        )

    def leave(self, symbol, row, price, reason):
        position, resting = self.open.pop(symbol), reason == "target" and self.config.maker_targets
        side, bankrupt = position.plan.side, position.bankrupt
        if reason == "liquidation" and side * price <= side * bankrupt:  # the venue takes what is left
            price, slippage, fee = bankrupt, 0.0, 0.0
        else:
            quoted = row - 1 if reason == "timeout" else row
            slippage, fee = self.slippage(symbol, quoted, resting), self.fee(resting)
        fill = price * (1 - side * slippage)
        fee *= abs(position.units) * fill
        back = position.worth(fill) - fee
        self.free += max(back, 0.0)
        profit = position.units * (fill - position.entry) - fee - position.costs - position.funding
        self.done.append(
            (
                position.plan.event,
                row,
                reason,
                price,
                position.units,
                position.fees + fee,
                position.funding,
                profit + max(-back, 0.0),
            )
        )

    def at_open(self, row, plans):
        if row and self.hours[row] != self.hours[row - 1]:  # a funding time: what is held since before pays
            for symbol in sorted(self.open):
                position = self.open[symbol]
                known = self.markets[symbol]["rate"][row]
                rate = self.config.funding_rate if np.isnan(known) else known
                due = position.units * self.markets[symbol]["open"][row] * rate
                due = min(due, self.free + position.margin)
                position.margin -= max(due - self.free, 0.0)
                self.free = max(self.free - due, 0.0)
                position.funding += due
        equity = self.worth("open", row)
        for symbol in list(self.open):
            position = self.open[symbol]
            at, side = self.markets[symbol]["open"][row], position.plan.side
            if row - position.plan.row == position.plan.limit and side * at > side * position.liquidation:
                self.leave(symbol, row, at, "timeout")
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
        entry, leverage = self.markets[plan.symbol]["open"][row], self.config.leverage_limit
        resting = self.config.maker_entries
        slippage, fee = self.slippage(plan.symbol, row - 1, resting), self.fee(resting)
        fill = entry * (1 + plan.side * slippage)
        most = self.free / (entry / leverage + entry * slippage + max(fee, 0.0) * fill)  # margin and costs
        units = plan.side * min(plan.share * equity / entry, most)
        if abs(units) * entry <= 1e-9 * self.config.initial_cash:
            return
        margin, fees = abs(units) * entry / leverage, abs(units) * fill * fee
        costs = fees + abs(units) * entry * slippage
        self.free = max(self.free - margin - costs, 0.0)
        liquidation = entry - plan.side * entry * (1 / leverage - self.config.maintenance_margin)
        bankrupt = entry - plan.side * entry / leverage
        self.open[plan.symbol] = Position(plan, units, entry, liquidation, bankrupt, fees, costs, margin)

    def worth(self, price, row):
        "Free money, and what the positions are worth at a price of the candle; none less than nothing."
        return self.free + sum(
            max(position.worth(self.markets[symbol][price][row]), 0.0)
            for symbol, position in self.open.items()
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
            gone = position.liquidation
            first, reason = (
                (plan.stop, "stop") if adverse * plan.stop < adverse * gone else (gone, "liquidation")
            )
            if adverse * open_ >= adverse * gone:  # the venue is there before the trader
                self.leave(symbol, row, open_, "liquidation")
            elif adverse * open_ >= adverse * first:
                self.leave(symbol, row, open_, reason)
            elif plan.side * open_ >= plan.side * plan.target:
                self.leave(symbol, row, open_, "target")
            elif adverse * worst >= adverse * first:  # price passes the nearer one first
                self.leave(symbol, row, first, reason)
            elif plan.side * best >= plan.side * plan.target:
                self.leave(symbol, row, plan.target, "target")

    def run(self, plans, rows):
        equity = []
        for row in range(rows):
            self.at_open(row, plans)
            self.within(row)
            equity.append(self.worth("close", row))
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
        "half": np.full(rows, np.nan),  # half the spread, share of the price
        "rate": np.full(rows, np.nan),  # of funding
    }


def with_quotes(market, generator, funded):
    "The market with quotes at some closes, and the rates of some funding times."
    rows = len(market["close"])
    half = np.where(generator.random(rows) < 0.7, generator.uniform(0, 0.002, rows), np.nan)
    rate = np.where(generator.random(rows) < 0.7, generator.normal(0, 0.003, rows), np.nan)
    return market | {"half": half, "rate": np.where(funded, rate, np.nan)}


def table_of(market, times):
    "The candles as the account reads them; quotes and funding are columns where anything is known."
    table = pd.DataFrame({name: market[name] for name in ("open", "high", "low", "close")}, index=times)
    if np.isfinite(market["half"]).any():
        table["bid"], table["ask"] = (market["close"] * (1 + side * market["half"]) for side in (-1, 1))
    if np.isfinite(market["rate"]).any():
        table["funding_rate"] = market["rate"]
    return table


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
    if seed % 2:
        hours, known = times.floor("8h"), np.random.default_rng(seed)
        funded = np.r_[False, hours[1:] != hours[:-1]]
        markets = {symbol: with_quotes(market, known, funded) for symbol, market in markets.items()}
    candles = Market({symbol: table_of(market, times) for symbol, market in markets.items()}, timeframe)
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
    assert (account.equity["equity"] >= 0).all() and account.equity["drawdown"].min() >= -1, seed
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
def test_of_a_stop_nearer_than_the_liquidation_price_only_a_gap_beyond_both_makes_a_liquidation(leverage):
    config, gaps = BacktestConfig(leverage_limit=leverage), 0
    distance = liquidation_distance(config)
    for seed in range(60):
        *_, candles, _, _, _, labels = case(seed)
        near = labels[(labels["entry"] - labels["stop"]).abs() / labels["entry"] < distance]
        gone = liquidate(near, candles, config).query("exit_reason == 'liquidation'")
        for trade in gone.itertuples():
            opened = candles[trade.symbol]["open"][trade.exit_at - candles.step]
            assert trade.direction * (opened / trade.entry - 1) <= -distance
            assert trade.direction * (trade.exit_price / trade.entry - 1) >= -1 / leverage - 1e-12
        gaps += len(gone)
    assert (gaps > 0) == (leverage == 10)


def falling_market(change, symbols="A", rows=40, at=20):
    "Candles that stand at 100 but for a gap; what the account trades is a long (or short) from row ten on."
    times = pd.date_range("2024-01-01", periods=rows, freq="5min", tz="UTC", name="open_time")
    price = np.where(np.arange(rows) < at, 100.0, 100.0 * (1 + change))
    table = pd.DataFrame(
        {"open": price, "high": price + 0.1, "low": price - 0.1, "close": price}, index=times
    )
    return times, Market(dict.fromkeys(symbols, table), "5m")


def held_through(times, change, symbols="A", side=1, at=20, stop=0.05, reason="stop"):
    "Trades whose stop a gap jumps, as the labels have them."
    inside = reason != "timeout"
    trade = {"direction": side, "time": times[10], "entry_at": times[10], "entry": 100.0}
    trade |= {
        "stop": 100 * (1 - side * stop),
        "target": 100 * (1 + side * 0.5),
        "exit_at": times[at + inside],
    }
    trade |= {"exit_price": 100 * (1 + change), "exit_reason": reason}
    return pd.DataFrame([trade | {"event_id": n, "symbol": name} for n, name in enumerate(symbols)])


LOSSES = {
    "a long, the gap": (-0.2, "A", 1, {}),
    "a short, the gap": (0.35, "A", -1, {}),
    "three at once": (-0.2, "ABC", 1, {}),
    "at the time limit": (-0.2, "A", 1, {"reason": "timeout"}),
    "a stop beyond the margin": (-0.2, "A", 1, {"stop": 0.4}),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("fees", [Costs(), Costs(fee_rate=0.002, slippage_rate=0.001)])
def test_losses_end_with_the_margin(name, fees):
    change, symbols, side, form = LOSSES[name]
    times, market = falling_market(change, symbols)
    labels = held_through(times, change, symbols, side, **form)
    said = pd.DataFrame({"event_id": labels["event_id"], "probability": 0.5, "expected_r": 1.0})
    config = BacktestConfig(leverage_limit=10.0, maximum_position=10.0, risk_per_trade=0.5)
    trades = select_trades(said, liquidate(labels, market, config), config, fees, market)
    account = run_backtest(trades, market, times[0], times[-1], config, fees)
    equity, booked = account.equity["equity"], account.trades
    assert (booked["exit_reason"] == "liquidation").all() and len(booked) == len(symbols)
    assert (equity >= 0).all() and (equity.iloc[-1] < 1e-6 or name == "a stop beyond the margin")
    assert account.equity["drawdown"].min() >= -1
    margin = booked["units"].abs() * 100 / 10
    paid = booked["units"].abs() * 100 * (fees.rate + fees.fee_rate * side * fees.slippage_rate)
    np.testing.assert_allclose(booked["profit"], -(margin + paid))  # the margin and the entry, no more
    np.testing.assert_allclose(booked["profit"].sum(), equity.iloc[-1] - config.initial_cash)
    np.testing.assert_allclose(booked["spared"], 0, atol=1e-6)


def test_the_numbering_of_the_trades_does_not_matter():
    times, market = falling_market(-0.2)
    first = held_through(times, -0.2, reason="timeout")
    meanwhile = first.assign(event_id=1, time=times[15], entry_at=times[15])
    config, span = BacktestConfig(leverage_limit=10.0, maximum_position=10.0), (times[0], times[-1])
    trades = pd.concat([first, meanwhile]).assign(position=0.5)
    assert not trades.index.is_unique
    account = run_backtest(trades, market, *span, config)
    numbered = run_backtest(trades.reset_index(drop=True), market, *span, config)
    pd.testing.assert_frame_equal(account.trades, numbered.trades)
    pd.testing.assert_frame_equal(account.equity, numbered.equity)
    assert account.trades["event_id"].tolist() == [0]  # whose symbol was not free falls away, and it alone


def test_a_ruined_account_trades_no_more():
    times, market = falling_market(-0.2)
    first = held_through(times, -0.2)
    later = {"time": times[30], "entry_at": times[30], "entry": 80.0, "stop": 76.0, "target": 81.0}
    later |= {"exit_at": times[32], "exit_price": 81.0, "exit_reason": "target", "event_id": 1}
    for sizing in ("fixed_risk", "kelly", "volatility"):
        config = BacktestConfig(
            leverage_limit=10.0,
            maximum_position=10.0,
            risk_per_trade=0.5,
            sizing=sizing,
            kelly_cap=0.6,
            kelly_fraction=1.0,
            volatility_target=0.9,
            volatility_window=10,
        )
        trades = pd.concat([first, first.assign(**later)], ignore_index=True).assign(position=10.0)
        account = run_backtest(trades, market, times[0], times[-1], config)
        assert account.trades["event_id"].tolist() == [0]
        assert account.equity["equity"].iloc[-1] < 1e-6
        assert account.equity["exposure"].iloc[-1] == 0


def test_costs_beyond_a_margin_that_is_nearly_gone_are_spared():
    "Liquidated just before bankruptcy, with an exit that costs more than what is left."
    times, market = falling_market(-0.099)
    dear, config = Costs(fee_rate=0.003, slippage_rate=0.0), BacktestConfig(leverage_limit=10.0)
    trades = held_through(times, -0.099).assign(position=1.0)
    later = {"event_id": 1, "time": times[30], "entry_at": times[30], "entry": 90.1, "exit_at": times[32]}
    later |= {"exit_price": 90.1, "exit_reason": "timeout", "stop": 89.0, "position": 10.0}
    trades = pd.concat([trades, trades.assign(**later)], ignore_index=True)
    account = run_backtest(trades, market, times[0], times[-1], config, dear)
    trade, second = account.trades.iloc[0], account.trades.iloc[1]
    left = 1e5 + trade["profit"]  # all of it is free for the next: what was spared is not owed
    assert second["units"] == pytest.approx(left / (9.01 + 90.1 * 0.003))
    assert (trade["exit_reason"], trade["exit_price"]) == ("liquidation", pytest.approx(90.1))
    assert trade["spared"] == pytest.approx(trade["units"] * (9.9 + 90.1 * 0.003 - 10))
    assert trade["profit"] == pytest.approx(-trade["units"] * (10 + 100 * 0.003))
    assert account.equity["equity"].iloc[-1] == pytest.approx(left + second["profit"])


def test_a_position_that_is_gone_at_an_open_counts_as_nothing_there():
    "The second symbol is bought at the open that gaps beyond the margin of the first."
    times, market = falling_market(-0.2, "AB")
    trades = held_through(times, -0.2, "AB").assign(position=[5.0, 2.0])
    trades.loc[1, ["entry_at", "entry", "exit_at", "exit_price"]] = [times[20], 80.0, times[25], 80.0]
    trades.loc[1, ["stop", "exit_reason"]] = [76.0, "timeout"]
    config, free = BacktestConfig(leverage_limit=10.0), Costs(fee_rate=0.0, slippage_rate=0.0)
    account = run_backtest(trades, market, times[0], times[-1], config, free)
    assert account.trades["profit"].tolist() == [pytest.approx(-5e4), pytest.approx(0)]
    assert account.trades["units"].iloc[1] == pytest.approx(2.0 * 5e4 / 80)  # of the half that is left


def test_a_gain_that_is_not_taken_is_no_margin_for_others():
    "Two symbols: the first has gained when the second is bought, then both fall to nothing."
    times = pd.date_range("2024-01-01", periods=40, freq="5min", tz="UTC", name="open_time")
    paths = {"A": np.repeat([100.0, 160, 50], [12, 8, 20]), "B": np.repeat([100.0, 50], 20)}
    tables = {
        name: pd.DataFrame({"open": path, "high": path, "low": path, "close": path}, index=times)
        for name, path in paths.items()
    }
    trades = held_through(times, -0.5, "AB")
    trades.loc[1, ["time", "entry_at"]] = times[15]
    config = BacktestConfig(leverage_limit=10.0, maximum_position=5.0)
    account = run_backtest(trades.assign(position=5.0), Market(tables, "5m"), times[0], times[-1], config)
    first, second = account.trades["units"] * 100
    assert first == pytest.approx(5e5) and second < 5.1e5  # the margin is half of what there was
    assert account.equity["equity"].iloc[12] > 3e5
    assert (account.equity["equity"] >= 0).all() and account.equity["equity"].iloc[-1] < 1e-6


def test_funding_takes_free_money_first_and_never_more_than_there_is():
    times = pd.date_range("2024-01-01", periods=40, freq="1h", tz="UTC", name="open_time")
    table = pd.DataFrame(dict.fromkeys(("open", "high", "low", "close"), 100.0), index=times)
    trades = held_through(times, 0.0, at=30).assign(position=1.0, entry_at=times[1])
    config = BacktestConfig(maximum_position=1.0)
    free = Costs(fee_rate=0.0, slippage_rate=0.0)
    for rate, left in ((0.01, 1 - 3 * 0.01), (0.6, 0.0)):  # at 08:00, 16:00 and 24:00
        funded = table.assign(funding_rate=np.where(np.arange(40) % 8 == 0, rate, np.nan))
        account = run_backtest(trades, Market({"A": funded}, "1h"), times[0], times[-1], config, free)
        assert account.equity["equity"].iloc[-1] == pytest.approx(1e5 * left, abs=1e-6)
        assert account.trades["funding"].iloc[0] == pytest.approx(1e5 * (1 - left))


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
