"""The agent's whole walk finds an edge where one is planted, and none on markets without one."""

import numpy as np
import pandas as pd
import pytest

from smc_ml.agents.chance import beside_chance
from smc_ml.agents.config import AgentConfig
from smc_ml.candles import Market
from smc_ml.controls.markets import planted_market
from smc_ml.controls.nulls import null_results
from smc_ml.costs import Costs
from smc_ml.features.families import market_features
from smc_ml.labels.config import SplitsConfig
from smc_ml.simulation.config import SimulationConfig
from smc_ml.simulation.market import random_walk
from smc_ml.stages.agent import trade_agent

CHEAP = Costs(fee_rate=0.0001, slippage_rate=0.0)
FOLDS = SplitsConfig(n_folds=2)


def moments(market: Market) -> pd.DataFrame:
    "Events that say nothing but where the folds lie."
    times = next(iter(market.values())).index[300:-300:50]
    return pd.DataFrame({"time": times, "exit_at": times + pd.Timedelta("1h")})


def through_the_stage(market: Market, features: dict[str, pd.DataFrame], config: AgentConfig) -> dict:
    "What the agent's stage says of a market."
    traded = trade_agent(market, features, moments(market), config, costs=CHEAP, splits=FOLDS)
    return traded.metrics(market)


def edge(metrics: dict) -> bool:
    "Whether an edge over chance is shown."
    return beside_chance(metrics) == "better"


def test_a_leak_is_an_edge_and_the_same_numbers_in_another_order_are_none():
    walk = random_walk(8000, 0)
    leak = np.log(walk["open"]).diff().shift(-2).fillna(0.0)
    mixed = leak.sample(frac=1.0, random_state=0).set_axis(leak.index)
    config = AgentConfig(sizes=(1.0,), drawdown_penalty=0.0, steps=16_384, seeds=(0,), context=())
    market = Market({"A": walk}, "5m")
    told = {
        name: through_the_stage(market, {"A": pd.DataFrame({"x": values})}, config)
        for name, values in (("leak", leak), ("mixed", mixed))
    }
    assert edge(told["leak"])
    assert not edge(told["mixed"])


@pytest.mark.slow
def test_the_control_markets_show_what_is_in_them():
    "Simulated, shuffled and mirrored candles without an edge, and three markets with one."
    config = AgentConfig(
        sizes=(1.0,),
        steps=120_000,
        seeds=(0,),
        context=("session",),
        discount=0.97,
        drawdown_penalty=0.1,
        entropy=0.01,
    )
    planted = SimulationConfig(edge=0.45, impulse_hours=2.0)
    walk = random_walk(34_560, 0)  # for its four months
    span = Market({"EDGE-A": walk, "EDGE-B": walk}, "5m")

    def judge(market: Market) -> dict:
        return through_the_stage(market, market_features(market, wanted=["smc"]), config)

    edges = {seed: planted_market(span, seed, planted).market for seed in (1, 2, 3)}
    seen = {seed: judge(market) for seed, market in edges.items()}
    nulls = pd.concat(null_results(edges[1], (1, 2), judge))
    wanted = [
        "round_trips",
        "time_in_market",
        "daily_return_before_costs_low",
        "daily_return_above_exposure_low",
    ]
    print(nulls[wanted], pd.DataFrame(seen).T[wanted], sep="\n")
    assert sum(edge(row) for row in nulls.to_dict("records")) <= 1
    assert sum(map(edge, seen.values())) >= 2
