"""Monitoring: budgets that are kept, faults that are found, nothing known early, promotions earned."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from smc_ml.candles import Market
from smc_ml.commands.monitoring import monitored
from smc_ml.features.table import feature_tables
from smc_ml.monitoring.config import DriftConfig, PerformanceConfig
from smc_ml.monitoring.drift import DriftDetector
from smc_ml.monitoring.performance import PerformanceMonitor
from smc_ml.monitoring.ranks import AlarmBudget, rank_of_last, rank_with_runs
from smc_ml.monitoring.relations import learn_relations, raw_columns, relation_scores
from smc_ml.monitoring.summaries import day_rows, day_summaries, usual_spread
from smc_ml.monitoring.watching import watch
from smc_ml.monitoring.wealth import paired_blocks, paired_test, simulated_pair, weeks_needed
from smc_ml.patterns.detection import detect_market
from smc_ml.reports.monitoring_page import monitoring_html

REFERENCE, ASKED = 90, 1 / 30


def level_of_budget(adaptation: float = 0.02, asked: float = ASKED) -> AlarmBudget:
    return AlarmBudget(asked, adaptation, least=1 / (REFERENCE + 1))


def alarms(days: np.ndarray, rank, adaptation: float = 0.02, asked: float = ASKED) -> tuple[int, int]:
    "Alarms and judged days, each day against the ninety before it."
    budget = level_of_budget(adaptation, asked)
    last = range(REFERENCE, len(days))
    return sum(budget.alarms(rank(days[place - REFERENCE : place + 1])) for place in last), len(last)


def inside(count: int, days: int, asked: float = ASKED) -> bool:
    "Whether so many alarms lie within the binomial band of what was asked, 99 %."
    low, high = binom.ppf([0.005, 0.995], days, asked)
    return low <= count <= high


def drifting(days):
    return rank_with_runs(days).p


def broken(days):
    return rank_of_last(days, one_sided=True).p


def nine_columns(candles: pd.DataFrame) -> pd.DataFrame:
    "What a model might look at, from candles: nine columns that hang together."
    change, close = np.log(candles["close"]).diff(), candles["close"]
    before = close.shift()
    reach = np.maximum(candles["high"], before) - np.minimum(candles["low"], before)
    atr, volume = reach.rolling(14).mean(), np.log1p(candles["volume"])
    rise, fall = (side.clip(lower=0).rolling(14).mean() for side in (change, -change))
    columns = {
        "return": change,
        "size": change.abs(),
        "rsi": 100 * rise / (rise + fall),
        "liveliness": np.log(change.rolling(20).std() / change.rolling(288).std()),
        "atr": atr / close,
        "volume": volume,
        "relative_volume": volume - volume.rolling(288).mean(),
        "distance": (close - close.rolling(50).mean()) / atr,
        "momentum": np.log(close).diff(20) / change.rolling(288).std(),
    }
    return pd.DataFrame(columns).iloc[300:].replace([np.inf, -np.inf], np.nan)


@pytest.fixture(scope="module")
def summaries(bitcoin) -> np.ndarray:
    "Half a year of real days in five numbers a column."
    rows = day_rows(nine_columns(bitcoin[: 200 * 288]))
    return day_summaries(rows, usual_spread(rows))


def test_the_budget_is_kept_on_shuffled_days_and_on_a_real_quarter(summaries):
    count, days = alarms(summaries, drifting)
    assert days > 90 and inside(count, days), f"{count} alarms on {days} real days"
    mixed = [np.random.default_rng(seed).permutation(len(summaries)) for seed in range(6)]
    counts = [alarms(summaries[order], drifting, adaptation=0) for order in mixed]  # a level that stays
    total, judged = (sum(part) for part in zip(*counts, strict=True))
    assert inside(total, judged), f"{total} alarms on {judged} shuffled days"


def test_a_level_of_five_percent_for_each_column_would_keep_no_budget(summaries):
    "What the family rank is for: a day alarms if any of nine columns does."
    rank = lambda days: min(rank_of_last(days[:, [column]]).p for column in range(9))  # noqa: E731
    judged = range(REFERENCE, len(summaries), 3)
    often = np.mean([rank(summaries[place - REFERENCE : place + 1]) <= 0.05 for place in judged])
    assert often > 3 * ASKED


def smc_columns(candles: pd.DataFrame) -> pd.DataFrame:
    "The sixteen SMC features, where all are exact."
    market = Market({"": candles}, "5m")
    return feature_tables(market, detect_market(market), wanted=("smc",))[""][20 * 288 :]


@pytest.mark.slow
@pytest.mark.parametrize("columns", [nine_columns, smc_columns])
@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHUSDT"])
def test_budgets_and_power_on_a_real_year(symbol, columns, market):
    "The figures that stand in the notebook of drift, within their noise."
    candles = pd.read_parquet(market / f"{symbol}_5m_binance_perp_2023.parquet").set_index("timestamp")
    candles.index = candles.index.as_unit("ns")
    rows = day_rows(columns(candles))
    days = day_summaries(rows, usual_spread(rows))
    orders = [np.random.default_rng(seed).permutation(len(days)) for seed in range(3)]
    assert inside(*alarms(days, drifting))
    assert all(inside(*alarms(days[order], drifting)) for order in orders)
    raw = raw_columns(candles)[300:]
    relations = learn_relations(raw[: REFERENCE * 288])
    scores, _ = relation_scores(raw, relations)
    for order in (np.arange(len(scores)), *orders):
        assert inside(*alarms(scores[order[: len(scores)]], broken))
    found = {one: power(days, rows, *one) for one in ((1.0, 1), (2.0, 1), (0.25, len(rows.columns)))}
    least = (0.25, 0.55, 0.95) if columns is nine_columns else (0.08, 0.1, 0.95)
    assert all(share > low for share, low in zip(found.values(), least, strict=True)), found
    assert columns is nine_columns or found[1.0, 1] < 0.35, found  # as the page says: they wander


def power(days: np.ndarray, rows, shift: float, columns: int) -> float:
    "Share of days on which a shift of so many columns is found, at the level that the budget has then."
    draw, spread, budget = np.random.default_rng(0), np.nanstd(rows.values, axis=(0, 1)), level_of_budget()
    places, hits = set(draw.choice(np.arange(REFERENCE + 5, len(days)), 60, replace=False)), []
    for place in range(REFERENCE, len(days)):
        if place in places:
            moved, which = rows.values[[place]].copy(), draw.choice(len(spread), columns, replace=False)
            moved[..., which] += shift * spread[which]
            told = day_summaries(rows._replace(values=moved), usual_spread(rows))
            hits.append(drifting(np.concatenate([days[place - REFERENCE : place], told])) <= budget.level)
        budget.alarms(drifting(days[place - REFERENCE : place + 1]))
    return float(np.mean(hits))


BREAKS = {
    "delayed": lambda x: x.shift(1).bfill(),
    "frozen": lambda x: x.where((np.arange(len(x)) < 100) | (np.arange(len(x)) >= 124)).ffill(),
    "flipped": lambda x: 2 * x.mean() - x,
    "constant": lambda x: x * 0 + x.iloc[0],
    "missing": lambda x: x * np.nan,
}


@pytest.mark.parametrize("kind", BREAKS)
def test_a_broken_column_of_real_candles_is_named_on_its_day(kind, bitcoin):
    raw, features = raw_columns(bitcoin[300 : 101 * 288]), nine_columns(bitcoin[: 101 * 288])
    day = raw.index[-1].floor("D")
    for column in ("close", "volume"):
        detector = DriftDetector(DriftConfig(reference_days=60))
        detector.set_reference_distribution(features[features.index < day], raw[raw.index < day])
        new = raw[raw.index >= day]
        found = detector.detect_data_drift(
            features[features.index >= day], new.assign(**{column: BREAKS[kind](new[column])})
        )
        assert [each.column for each in found.breaks] == [column], (kind, column, found.breaks)


def small_market(days: int = 70, seed: int = 0):
    "Features, candles, predictions and outcomes of a symbol, by the quarter of an hour."
    draw = np.random.default_rng(seed)
    times = pd.date_range("2024-01-01", periods=96 * days, freq="15min", tz="UTC", name="open_time")
    close = 100 * np.exp(np.cumsum(0.001 * draw.standard_t(4, len(times))))
    wide = close * 0.001 * (1 + draw.random(len(times)))
    candles = pd.DataFrame({"open": np.r_[100.0, close[:-1]], "close": close}, times)
    candles["high"], candles["low"] = candles.max(axis=1) + wide, candles.min(axis=1) - wide
    candles["volume"] = 50 * (candles["high"] - candles["low"]) * (1 + draw.random(len(times)))
    features = pd.DataFrame(draw.normal(size=(len(times), 4)), times, list("abcd"))
    when = pd.Series(pd.date_range("2024-02-15", periods=16 * (days - 46), freq="90min", tz="UTC"))
    events = pd.DataFrame({"symbol": "A", "time": when, "event_id": range(len(when))})
    chance = draw.uniform(0.3, 0.7, len(when))
    won = draw.random(len(when)) < chance
    outcomes = events.assign(exit_at=when + pd.Timedelta("3h"), won=won, realised_r=np.where(won, 1.2, -1.05))
    predictions = events.assign(probability=chance, expected_r=chance - 0.5)
    return {"A": features}, {"A": candles}, predictions, outcomes


@pytest.fixture(scope="module")
def seen():
    return watch(*small_market())


def test_what_is_said_of_a_day_does_not_wait_for_later_days(seen):
    "The same alerts and numbers from tables that end earlier: nothing looks ahead."
    features, candles, predictions, outcomes = small_market()
    end = pd.Timestamp("2024-03-01", tz="UTC")
    earlier = watch(
        {"A": features["A"][:end][:-1]},
        {"A": candles["A"][:end][:-1]},
        predictions[predictions["time"] < end],
        outcomes[outcomes["exit_at"] <= end],
    )
    pd.testing.assert_frame_equal(earlier.drift.days, seen.drift.days[: len(earlier.drift.days)])
    assert earlier.alerts == tuple(each for each in seen.alerts if each.known_at <= end)
    blocks = seen.performance.blocks()
    pd.testing.assert_frame_equal(earlier.performance.blocks(), blocks[blocks.index <= end], check_freq=False)
    assert len(earlier.drift.days) == 15


def test_levels_survive_a_restart():
    features, candles, *_ = small_market()
    table, turn = features["A"], pd.Timestamp("2024-02-20", tz="UTC")
    config = DriftConfig(reference_days=45)
    whole, first, second = (DriftDetector(config) for _ in range(3))
    for each in (whole, first):
        each.set_reference_distribution(table[table.index < "2024-02-15"])
    days = whole.detect_data_drift(table).days
    first.detect_data_drift(table[table.index < turn])
    second.set_reference_distribution(table[table.index < turn])
    second.restore(json.loads(json.dumps(first.state())))
    later = second.detect_data_drift(table).days
    pd.testing.assert_frame_equal(later, days[days["day"] >= turn].reset_index(drop=True))


def test_false_degradations_stay_within_their_budget():
    "Sixteen years in which nothing changes: warnings in about half of them at most, degradations in few."
    warned = degraded = 0
    for seed in range(16):
        draw = np.random.default_rng(seed)
        time = pd.Series(pd.date_range("2024-01-01", periods=4380, freq="2h", tz="UTC"))
        events = pd.DataFrame({"symbol": "A", "time": time, "event_id": range(4380)})
        chance = draw.uniform(0.3, 0.7, 4380)
        monitor = PerformanceMonitor(PerformanceConfig(), wins=5.0, count=10.0)
        outcomes = events.assign(exit_at=time + pd.Timedelta("3h"), won=draw.random(4380) < chance)
        monitor.update_performance(events.assign(probability=chance), outcomes)
        levels = {each.level for each in monitor.alerts() if each.metric == "log_loss_gain"}
        warned, degraded = warned + bool(levels - {""}), degraded + ("degraded" in levels)
    assert warned <= 13 and degraded <= 2, (warned, degraded)


def false_promotions(runs: int, weeks: int = 104) -> int:
    tests = (paired_test(paired_blocks(simulated_pair(1000 + run, weeks))) for run in range(runs))
    return sum(test.won_at is not None for test in tests)


def test_few_challengers_that_are_no_better_are_promoted():
    assert false_promotions(100, 52) <= binom.ppf(0.995, 100, 0.05)


@pytest.mark.slow
def test_at_most_one_of_twenty_is_promoted_in_two_years():
    assert false_promotions(1000) <= 50


def test_a_real_gain_is_promoted_and_the_weeks_were_foretold():
    test = paired_test(paired_blocks(simulated_pair(7, 104, gain=0.02)))
    assert test.won_at is not None and test.lost_at is None
    past = paired_blocks(simulated_pair(8, 52))["difference"]
    weeks = [weeks_needed(past, gain, runs=40).median for gain in (0.005, 0.01, 0.02)]
    assert weeks == sorted(weeks, reverse=True) and weeks[0] < 60, weeks


def test_the_command_writes_the_page_of_a_run(tmp_path, seen):
    from smc_ml.candles import write_candles
    from smc_ml.tables import write_tables

    features, candles, predictions, outcomes = small_market()
    artifacts = tmp_path / "artifacts"
    for folder in ("candles", "predictions", "labels", "features"):
        (artifacts / folder).mkdir(parents=True)
    write_tables(features, artifacts / "features")
    write_candles(candles["A"], artifacts / "candles/A_15m.parquet", "15m", simulation={"edge": 0.0})
    predictions.to_parquet(artifacts / "predictions/ensemble.parquet")
    outcomes.to_parquet(artifacts / "labels/labels.parquet")
    facts = {"family": "smc", "signed": False, "partner": None, "optional": False, "unit": "", "meaning": ""}
    entries = [facts | {"name": name, "lookback": 1, "inputs": ["close"]} for name in "abcd"]
    (artifacts / "catalogue.json").write_text(json.dumps(entries))
    lines = monitored(tmp_path)
    page = (tmp_path / "reports/monitoring.html").read_text(encoding="utf-8")
    assert lines[0].startswith("Simulated candles") and "Simulated candles" in page
    assert seen.performance.get_performance_report().sentence() in lines
    assert lines[-1] == f"The page is at {Path(tmp_path / 'reports/monitoring.html').resolve().as_uri()}"
    monitored(tmp_path)
    assert (tmp_path / "reports/monitoring.html").read_text(encoding="utf-8") == page
    assert monitoring_html(seen).count("<img") == 3
