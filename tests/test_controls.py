"""Chance is told from skill.

The same code finds no edge where there is none, the edge that was planted, and a leak of one candle.
"""

import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, by_timeframe, stage_cells

from smc_ml.candles import Market, candles_path, validate_candles, write_candles
from smc_ml.controls.markets import NULL_MARKETS, mirrored_market, shuffled_market, simulated_market
from smc_ml.controls.nulls import NullEdgeError, assert_no_edge, null_results, planted_results, run_markets
from smc_ml.controls.placebo import placebo_test
from smc_ml.controls.planted import share_of_reachable, share_table
from smc_ml.evaluation.verdict import Detectable, decide, edge_shown, evidence_of, verdict
from smc_ml.patterns.detection import detect_timeframes
from smc_ml.simulation.config import SimulationConfig
from smc_ml.simulation.market import simulate_market
from smc_ml.stages.calls import PipelineRun, headlines, judge_events, market_events, pipeline_result
from smc_ml.stages.config import PipelineSettings
from smc_ml.stages.ensemble import combine_models
from smc_ml.stages.features import compute_features
from smc_ml.stages.labels import label_trades
from smc_ml.stages.learning import MarketEvents
from smc_ml.stages.patterns import find_patterns, in_timeframes
from smc_ml.stages.train import train_model
from smc_ml.tables import read_table, write_tables
from smc_ml.trading.account import random_selections
from smc_ml.trading.config import BacktestConfig
from smc_ml.writing import write_table

FAST, SEEDS = PipelineSettings(), (1, 2, 3)


def simulated(edge: float, seed: int, end: str = "2024-05-30") -> Market:
    config = SimulationConfig(edge=edge, seed=seed, impulse_hours=2.0)
    markets = simulate_market(["SIM-A", "SIM-B"], "2024-01-01", end, config)
    return Market({symbol: market.candles for symbol, market in markets.items()}, "5m")


@pytest.fixture(scope="module")
def edgeless() -> dict[int, MarketEvents]:
    "Simulated markets without an edge, by seed."
    return {seed: market_events(simulated(0.0, seed)) for seed in SEEDS}


def with_later_features(
    events: MarketEvents, candles: int, only: tuple[str, ...] | None = None
) -> MarketEvents:
    "A leak: features, or some of them, as they will be some candles later."
    later = {
        symbol: table.assign(**{name: table[name].shift(-candles) for name in only or table})
        for symbol, table in events.features.items()
    }
    return events._replace(features=later)


def found(run: PipelineRun) -> bool:
    "What the report would call an edge."
    return edge_shown(evidence_of(headlines(run)))


@pytest.fixture(scope="module")
def nulls(edgeless) -> dict[int, pd.DataFrame]:
    "Headlines of the markets without an edge, with features as they are, one candle and one hour later."
    return {candles: headlines_of(edgeless, candles) for candles in (0, 1, 12)}


def headlines_of(
    edgeless: dict[int, MarketEvents], candles: int, only: tuple[str, ...] | None = None
) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"seed": seed, **headlines(judge_events(with_later_features(events, candles, only)))}
            for seed, events in edgeless.items()
        ]
    )


def test_markets_without_an_edge_show_none(edgeless, nulls):
    assert_no_edge(nulls[0], "simulated")
    assert (nulls[0]["advantage_low"] <= 0).all()
    for seed in SEEDS:
        run = judge_events(edgeless[seed])
        assert not found(run) and decide(evidence_of(headlines(run))) == "unknown"
        assert "is shown" not in verdict(evidence_of(headlines(run)), Detectable(0.3, 0.4)).sentence


@pytest.mark.parametrize("seed", SEEDS)
def test_a_planted_edge_is_found(seed):
    "Two years: with eight months the interval of the mean still reached below zero for one of these seeds."
    events = market_events(simulated(0.45, seed, end="2025-12-31"))
    run = judge_events(events)
    assert found(run), headlines(run)
    assert verdict(evidence_of(headlines(run))).answer == "An edge is shown."
    mixed = run.predictions[run.predictions["model"] == "ensemble"]
    assert (random_selections(mixed, events.labels, FAST.backtest) >= run.metrics["mean_r"]).mean() < 0.01


def test_features_of_the_next_candle_fail_the_control_loudly(nulls):
    with pytest.raises(
        NullEdgeError,
        match=r"(auc|ic) averages 0\.\d+ over 3 markets without an edge.*something knows the future",
    ):
        assert_no_edge(nulls[1], "simulated")


def test_a_single_feature_of_the_next_candle_is_enough_to_fail(edgeless):
    with pytest.raises(NullEdgeError):
        assert_no_edge(headlines_of(edgeless, 1, ("price_momentum",)))


def test_the_further_a_leak_looks_the_larger_the_edge_it_shows(nulls):
    none, candle, hour = (table["auc"].mean() for table in nulls.values())
    assert none < 0.51 < candle < hour
    assert (nulls[12]["auc_low"] > 0.5).all() and (nulls[12]["mean_r_low"] > 0).all()


def test_real_candles_shuffled_or_mirrored_keep_the_contract_and_their_ranges(bitcoin, ether):
    real = Market({"BTC": bitcoin, "ETH": ether}, "5m")
    for market in (shuffled_market, mirrored_market):
        changed = market(real, 1)
        for symbol, table in changed.items():
            validate_candles(table, "5m", symbol)
            same = (table["high"] / table["low"]).sort_values().to_numpy() / (
                real[symbol]["high"] / real[symbol]["low"]
            ).sort_values().to_numpy()
            assert abs(same - 1).max() < 1e-9 and table["volume"].sum() == pytest.approx(
                real[symbol]["volume"].sum()
            )
            returns = table["close"].pct_change().dropna().to_numpy()
            pairs = returns[1:] * returns[:-1]
            assert abs(pairs.sum()) < 3 * (pairs**2).sum() ** 0.5


def test_a_planted_edge_is_gone_from_shuffled_and_from_mirrored_candles():
    planted = simulated(0.45, 1)
    assert headlines(judge_events(market_events(planted)))["auc_low"] > 0.5
    for name, table in null_results(
        planted, SEEDS[:2], markets={"shuffled": shuffled_market, "mirrored": mirrored_market}
    ).items():
        assert_no_edge(table, name)


def test_no_model_gets_more_than_can_be_reached():
    markets = simulate_market(
        ["SIM-A", "SIM-B"], "2024-01-01", "2024-08-28", SimulationConfig(edge=0.45, seed=1, impulse_hours=2.0)
    )
    events = market_events(Market({symbol: market.candles for symbol, market in markets.items()}, "5m"))
    shares = share_of_reachable(
        judge_events(events).predictions,
        events.labels,
        {symbol: market.truth for symbol, market in markets.items()},
    )
    assert (
        (shares["share_low"] > 0).all()
        and (shares["share_low"] < 1).all()
        and (shares["accuracy"] < shares["reachable_accuracy"]).all()
    )


OTHER_BASES = {
    "15m": {"patterns": {"timeframes": ["15m", "1h", "4h", "1d"]}, "labels": {"timeframes": ["15m"]}},
    "1m": {
        "patterns": {"timeframes": ["1m", "5m", "15m", "1h"]},
        "labels": {"timeframes": ["5m"]},
        "features": {"alignment_pair": ["15m", "1h"], "trend_timeframe": "1h"},
        "splits": {"n_folds": 2},
    },
}


@pytest.mark.parametrize("base", OTHER_BASES)
def test_the_controls_work_on_any_base_timeframe(base):
    settings, market = PipelineSettings(**OTHER_BASES[base]), simulated(0.45, 1, "2024-12-31")
    if base == "1m":  # the same candles by a clock that runs five times as fast
        start = next(iter(market.values())).index[0]
        faster = {s: c[:40_000].set_axis(start + (c.index[:40_000] - start) / 5) for s, c in market.items()}
        market = Market(faster, "1m")
    market = market.at(base)
    assert pipeline_result(market, settings)["auc_low"] > 0.5
    for make in NULL_MARKETS.values():
        null = make(market, 1)
        assert null.timeframe == base and pipeline_result(null, settings)["auc_low"] < 0.5


TINY, SHORT = PipelineSettings(splits={"n_folds": 2}), {"end": "2024-02-25"}


def test_two_processes_give_what_one_gives():
    results = [
        null_results(
            simulated(0.45, 1, **SHORT),
            SEEDS[:2],
            partial(pipeline_result, settings=TINY),
            partial(run_markets, processes=processes),
        )
        for processes in (1, 2)
    ]
    for kind, table in results[0].items():
        pd.testing.assert_frame_equal(table, results[1][kind], check_exact=True)


def test_a_planted_market_gives_its_headlines_and_the_share_of_every_model_in_one_run():
    candles = simulated(0.45, 1)
    without = null_results(candles, SEEDS[:1], markets={"simulated": simulated_market})["simulated"]
    planted = planted_results(candles, (0.05, 0.45), SEEDS[:1], without)
    assert planted.runs["edge"].tolist() == [0.0, 0.05, 0.45] and planted.runs["found"].tolist()[::2] == [
        False,
        True,
    ]
    table = share_table(planted.shares).set_index(["edge", "model"])
    assert set(planted.shares["model"]) == {"logistic", "xgboost", "ensemble"} and len(table) == 6
    assert table.at[(0.45, "ensemble"), "auc"] == pytest.approx(planted.runs["auc"].iloc[-1], rel=1e-5)
    assert (table.loc[0.45, "share"].astype(float) > 0.2).all() and (
        table["share"].notna() == (table["reachable"] > 0)
    ).all()


SLOW_MARKETS = """
import sys, time
from functools import partial
from pathlib import Path
import pandas as pd
from smc_ml.controls.nulls import run_markets
from smc_ml.stages.kept import kept
def learn(number):
    with open(sys.argv[1] + "/calls", "a") as calls: calls.write(f"{number} ")
    time.sleep(0.3)
    return pd.DataFrame({"auc": [number / 10]})
def judge(number):
    place = Path(sys.argv[1]) / f"nulls/{number}/labels.parquet"
    table = kept(place, "a", partial(learn, number))
    return {"auc": table["auc"].item()}
if __name__ == "__main__":
    tasks = {f"nulls/{number}": partial(judge, number) for number in range(6)}
    print(run_markets(tasks, progress=False))
"""


def test_markets_killed_half_way_go_on_where_they_stopped(tmp_path):
    (tmp_path / "run.py").write_text(SLOW_MARKETS)
    first = subprocess.Popen([sys.executable, tmp_path / "run.py", tmp_path], cwd=ROOT)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("nulls/*/labels.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    there = {path: path.stat().st_mtime_ns for path in tmp_path.glob("nulls/*/labels.parquet")}
    assert 3 <= len(there) < 6
    second = subprocess.run(
        [sys.executable, tmp_path / "run.py", tmp_path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert second.stdout.strip() == str({f"nulls/{number}": {"auc": number / 10} for number in range(6)})
    calls = (tmp_path / "calls").read_text().split()
    assert (
        all(calls.count(path.parent.name) == 1 for path in there) and len(calls) <= 7
    )  # at most the one that was killed ran twice
    assert {path: path.stat().st_mtime_ns for path in there} == there


EXTREME = BacktestConfig(leverage_limit=100.0, maximum_position=50.0, risk_per_trade=0.05)


@pytest.mark.parametrize("backtest", [BacktestConfig(), EXTREME], ids=["default", "extreme"])
def test_the_controls_judge_the_account_of_the_backtest(backtest, tmp_path, monkeypatch):
    "The stages' functions over their files, and the controls' in one run: the same trades, one by one."
    settings = FAST.model_copy(update={"backtest": backtest})
    market = simulated(0.45, 1)
    run = judge_events(market_events(market, settings), settings)

    patterns = find_patterns(in_timeframes(market, settings.patterns.timeframes), settings.patterns).tables
    labelled = label_trades(market, patterns, settings.labels, settings.costs, settings.patterns)
    write_tables({"labels": labelled.outcomes}, tmp_path / "artifacts/labels")
    outcomes = read_table(tmp_path / "artifacts/labels/labels.parquet")
    computed = compute_features(market, patterns, settings.features, settings.patterns)
    learnt = computed.tables, computed.catalogue
    trained = [
        train_model(model, *learnt, outcomes, settings.train, settings.splits, progress=False)
        for model in settings.train.models
    ]
    combined = combine_models([one.run.predictions for one in trained], outcomes, settings.ensemble)
    write_tables(patterns, tmp_path / "artifacts/patterns")
    stage = backtest_notebook(tmp_path, monkeypatch, market, combined.mixed, settings)

    write_table(run.trades, tmp_path / "run.parquet")
    pd.testing.assert_frame_equal(read_table(tmp_path / "run.parquet"), stage, check_exact=True)
    reasons = set(run.trades["exit_reason"])
    assert ("liquidation" in reasons) == (backtest is EXTREME) and len(run.trades) > 100


def backtest_notebook(
    folder: Path, monkeypatch, market: Market, predictions: pd.DataFrame, settings: PipelineSettings
) -> pd.DataFrame:
    "The trades that the notebook of the stage writes, run cell by cell on these inputs."
    (folder / "dvc.yaml").touch()
    (folder / "reports/plots").mkdir(parents=True)
    write_table(predictions, folder / "artifacts/predictions/ensemble.parquet", {"trial": "a"})
    for symbol, candles in market.items():
        path = candles_path(folder / "artifacts/candles", symbol, market.timeframe)
        write_candles(candles, path, market.timeframe, source="test")
        unknown = pd.DataFrame({"state": pd.array([None] * len(candles), "Int8"), "regime_0": float("nan")})
        write_table(unknown.set_index(candles.index), folder / f"artifacts/regimes/{symbol}.parquet")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MPLBACKEND", "agg")
    space = {}
    for cell in stage_cells(ROOT / "nbs/pipeline/70_backtest.ipynb"):
        exec("".join(cell["source"]), space)
        if "parameters" in cell["metadata"].get("tags", []):
            space |= {"backtest": settings.backtest.model_dump(), "costs": settings.costs.model_dump()}
    return read_table("artifacts/backtest/trades.parquet")


def test_the_stage_checks_the_markets_without_an_edge_before_it_shows_any_result():
    cells = [
        "".join(cell["source"])
        for cell in json.loads((ROOT / "nbs/pipeline/80_controls.ipynb").read_text())["cells"]
        if cell["cell_type"] == "code"
    ]

    def first(call: str) -> int:
        return next(number for number, cell in enumerate(cells) if call in cell and "import" not in cell)

    assert first("null_results(") == first("checked_nulls(nulls)")
    assert first("checked_nulls(nulls)") < min(
        map(
            first,
            (
                "judge_market(",
                "null_plot(",
                "standings(",
                "planted_results(",
                "placebo_test(",
                "write_tables(",
                "write_metrics(",
            ),
        )
    )


def test_random_zones_on_real_candles_are_matched(bitcoin):
    effects, zones = placebo_test({"BTC": bitcoin}, {"BTC": detect_timeframes(by_timeframe(bitcoin))})
    assert (effects["compared"] > 1000).all() and effects["move_low"].notna().all()
    assert (effects["touched_share"] - effects["placebo_touched_share"]).abs().max() < 0.05
    assert zones["placebo_hit"].mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("edge, end", [(0.0, "2024-08-28"), (0.45, "2025-12-31")])
def test_the_whole_ensemble_tells_them_apart_too(edge, end):
    "Two years for the edge: with eight months the interval of the mean result still reaches below zero."
    settings = PipelineSettings(train={"models": ["logistic", "xgboost", "lstm"]})
    run = judge_events(market_events(simulated(edge, 4, end), settings), settings)
    assert found(run) == (edge > 0), headlines(run)
