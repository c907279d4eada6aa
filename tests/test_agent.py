"""The agent on real candles: its account is the backtest's, and what it is shown knows no future."""

import numpy as np
import pandas as pd
import pytest

from smc_ml.agents.config import AgentConfig
from smc_ml.agents.environment import MarketWindows
from smc_ml.agents.following import follow_actions, round_trips
from smc_ml.agents.rows import trading_rows
from smc_ml.candles import Market
from smc_ml.costs import Costs
from smc_ml.trading.account import run_backtest
from smc_ml.trading.config import BacktestConfig

ACCOUNTS = {
    "spot": (BacktestConfig(), Costs(), (0.25, 0.5, 1.0)),
    "perpetual": (
        BacktestConfig(leverage_limit=5.0, half_spread_rate=0.00005, funding_rate=0.0005),
        Costs(fee_rate=0.0004),
        (0.5, 2.0, 5.0),
    ),
    "thin margin": (
        BacktestConfig(leverage_limit=100.0, slippage_range_share=0.1, maintenance_margin=0.004),
        Costs(fee_rate=0.0002),
        (1.0, 30.0, 100.0),
    ),
    "passive": (BacktestConfig(maker_entries=True, maker_fee_rate=-0.0001), Costs(), (0.1, 0.9)),
}
CANDLES = 400


def moves(candles: pd.DataFrame) -> pd.DataFrame:
    "Two features of the past."
    past = candles["close"].pct_change()
    return pd.DataFrame({"last": past, "hour": past.rolling(12).sum()})


def one_account(candles: pd.DataFrame, seed: int) -> tuple[int, int]:
    "A random sequence of actions; trades and liquidations."
    random = np.random.default_rng(seed)
    config, costs, sizes = ACCOUNTS[list(ACCOUNTS)[seed % len(ACCOUNTS)]]
    begin = int(random.integers(len(candles) - CANDLES))
    part = candles.iloc[begin : begin + CANDLES]
    if seed % 5 == 0:  # with holes, short and long
        part = part.drop(part.index[random.choice(np.arange(30, CANDLES - 5), 9, replace=False)])
    market = Market({"BTC": part}, "5m", kind="perpetual")
    rows = trading_rows(market, {"BTC": moves(part)}, AgentConfig(sizes=sizes), config, costs)
    often = random.uniform(0.02, 0.9)

    def act(seen: np.ndarray) -> np.ndarray:
        return np.array([random.choice(3, p=[often / 2, 1 - often, often / 2]), random.integers(len(sizes))])

    followed = follow_actions(rows, act, "BTC")
    trades = round_trips(followed, rows)
    if not len(trades):
        assert (followed["equity"] == config.initial_cash).all()
        return 0, 0
    booked = run_backtest(trades, market, trades["entry_at"].iloc[0], part.index[-1], config, costs)
    traded = followed.set_index("time")["equity"].loc[booked.equity.index[0] :]
    assert booked.equity.index.equals(traded.index)
    off = np.abs(booked.equity["equity"].to_numpy() - traded.to_numpy())
    assert off.max() <= 1e-9 * config.initial_cash, seed
    worth = (
        traded.to_numpy() > 0.01 * config.initial_cash
    )  # of less, the sums of the orders leave fewer digits
    assert (off[worth] <= 1e-9 * traded.to_numpy()[worth]).all(), seed
    return len(trades), int((trades["exit_reason"] == "liquidation").sum())


def both_accounts_agree(candles: pd.DataFrame, seeds: range) -> None:
    counts = np.array([one_account(candles, seed) for seed in seeds])
    assert counts[:, 0].sum() > 20 * len(seeds) and counts[:, 1].sum() > len(seeds) / 10


def test_the_environment_s_account_is_the_backtest_s(bitcoin):
    both_accounts_agree(bitcoin, range(20))


@pytest.mark.slow
def test_the_environment_s_account_is_the_backtest_s_in_five_hundred_sequences(bitcoin):
    both_accounts_agree(bitcoin, range(1000, 1500))


def test_no_observation_changes_when_the_future_does(bitcoin):
    "Neither features nor account: what was seen until a row stays, whatever comes after it."
    part, cut = bitcoin.iloc[5000:6000], 700
    changed = part.copy()
    changed.iloc[cut + 1 :] = part.iloc[cut + 1 :].to_numpy() * 1.7
    seen = []
    for candles in (part, changed):
        rows = trading_rows(Market({"BTC": candles}, "5m"), {"BTC": moves(candles)})
        random, windows = np.random.default_rng(0), MarketWindows(rows, 40, 200, seed=0)
        observed, shown = windows.reset(), []
        for _ in range(150):
            known = windows.accounts["row"] <= cut
            shown.append(observed[known])
            actions = np.stack([random.integers(3, size=40), random.integers(3, size=40)], axis=1)
            observed = windows.play(actions).observation
        seen.append(np.concatenate(shown))
    assert len(seen[0]) > 2000 and np.ptp(seen[0][:, 2]) > 1  # positions were held
    np.testing.assert_array_equal(*seen)
