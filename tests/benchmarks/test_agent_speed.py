"""The agent: many windows at once against one by one, training against the usual set-ups, one decision beside
the LSTM's and the transformer's.

`make bench` runs it; ratios are of processor time in the same run.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv

from smc_ml.agents.config import AgentConfig
from smc_ml.agents.environment import MarketWindows, TradingEnvironment
from smc_ml.agents.policy import load_agent, save_agent
from smc_ml.agents.ppo import TradingVecEnv, _learner
from smc_ml.agents.rows import TradingRows, trading_rows
from smc_ml.agents.walk_forward import train_on
from smc_ml.candles import Market
from smc_ml.models import load
from smc_ml.models.config import TrainingConfig
from smc_ml.models.export import onnx_files
from smc_ml.models.registry import MODELS
from smc_ml.models.saving import save_model
from smc_ml.models.windows import Windows
from smc_ml.simulation.market import random_walk


@pytest.fixture(scope="module")
def rows() -> TradingRows:
    "A walk with sixteen features, scaled."
    walk, random = random_walk(20_000, 0), np.random.default_rng(0)
    told = pd.DataFrame(random.normal(size=(20_000, 16)), walk.index, [f"x{place}" for place in range(16)])
    return trading_rows(Market({"A": walk}, "5m"), {"A": told})


def steps_a_second(steps: int, play: Callable[[], None]) -> float:
    "Of processor time."
    begin = time.process_time()
    play()
    return steps / (time.process_time() - begin)


def playing(environment: DummyVecEnv | TradingVecEnv, turns: int) -> Callable[[], None]:
    "Random actions, drawn before."
    random = np.random.default_rng(0)
    actions = np.stack([random.integers(3, size=(turns, environment.num_envs)) for _ in range(2)], axis=-1)

    def play() -> None:
        environment.reset()
        for action in actions:
            environment.step(action)

    return play


def test_many_windows_against_one_by_one(benchmark, rows):
    many = TradingVecEnv(MarketWindows(rows, 256, seed=0))
    plain = DummyVecEnv([lambda: TradingEnvironment(rows) for _ in range(8)])
    playing(many, 10)(), playing(plain, 10)()
    benchmark.group, benchmark.name = "environment", "256 windows, 300 candles each"
    benchmark.pedantic(playing(many, 300), rounds=5)
    fast, slow = (
        max(steps_a_second(turns * one.num_envs, playing(one, turns)) for _ in range(3))
        for one, turns in ((many, 600), (plain, 600))
    )
    benchmark.extra_info |= {"steps_a_second": fast, "one_by_one": slow, "ratio": fast / slow}
    print(f"{fast:,.0f} steps/s against {slow:,.0f}: {fast / slow:.0f} times")
    assert fast > 20 * slow


def test_training_against_the_usual_set_ups(benchmark, rows):
    torch.set_num_threads(1)

    def usual(windows: int, batch: int, each: int) -> PPO:
        made = DummyVecEnv([lambda: TradingEnvironment(rows) for _ in range(windows)])
        return PPO("MlpPolicy", made, n_steps=each, batch_size=batch, device="cpu", seed=0)

    config = AgentConfig()
    own = _learner(MarketWindows(rows, config.environments, config.episode_bars, seed=0), config, 0)
    one, eight = usual(1, 64, 2048), usual(8, 512, 256)
    steps = {"own": (own, 40_960), "one": (one, 4096), "eight": (eight, 16_384)}
    own.learn(4096)  # compiled and warm
    speed = {
        name: steps_a_second(count, lambda model=model, count=count: model.learn(count))
        for name, (model, count) in steps.items()
    }
    benchmark.group, benchmark.name = "PPO", "4,096 candles of 128 windows"
    benchmark.pedantic(lambda: own.learn(4096), rounds=1)
    benchmark.extra_info |= speed
    print({name: round(each) for name, each in speed.items()})
    assert speed["own"] > 10 * speed["one"] and speed["own"] > 2 * speed["eight"]


def saved(name: str, folder: Path) -> tuple[Any, Windows]:
    "A network of full size, trained for a moment, as it is asked live, and a window for it."
    steps, random = {"lstm": 60, "transformer": 120}[name], np.random.default_rng(0)
    values = random.normal(size=(steps + 64, 16)).astype(np.float32)
    X = Windows(values, np.arange(steps, steps + 64), tuple(f"x{place}" for place in range(16)), steps)
    model = MODELS[name].make(TrainingConfig(**{name: {"epochs": 1}})).fit(X, values[X.positions, 0] > 0)
    save_model(model, folder, {"name": name}, onnx_files(model))
    return load(folder, live=True), X[:1]


def p99_in_ms(ask: Callable[[], object], calls: int = 1000) -> float:
    "Of processor time; the first calls do not count."
    taken = np.empty(calls + 50)
    for call in range(len(taken)):
        begin = time.process_time_ns()
        ask()
        taken[call] = time.process_time_ns() - begin
    return float(np.quantile(taken[50:], 0.99)) / 1e6


def test_one_decision_of_lstm_transformer_and_agent(benchmark, rows, tmp_path):
    "One sample each, of what was saved."
    save_agent(train_on(rows, AgentConfig(steps=2048)).agent, tmp_path / "agent", {})
    agent, seen = load_agent(tmp_path / "agent"), np.zeros(20, np.float32)
    models = [saved(name, tmp_path / name) for name in ("lstm", "transformer")]

    def decide() -> list[object]:
        return [agent.act(seen), *(model.predict_proba(window) for model, window in models)]

    alone, together = p99_in_ms(lambda: agent.act(seen)), p99_in_ms(decide)
    benchmark.group, benchmark.name = "one decision", "LSTM, transformer and agent"
    benchmark.pedantic(decide, rounds=300)
    benchmark.extra_info |= {"agent_p99_ms": alone, "together_p99_ms": together}
    each = [p99_in_ms(lambda one=one, window=window: one.predict_proba(window)) for one, window in models]
    print(
        f"p99: agent {alone:.3f} ms, LSTM {each[0]:.2f}, transformer {each[1]:.2f}, together {together:.2f}"
    )
    assert alone < 1 and together < 8
