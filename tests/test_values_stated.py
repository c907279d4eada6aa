"""Values that a deliberate change of the code once moved without any test noticing (`make mutants`)."""

import numpy as np
import pandas as pd
import pytest

from smc_ml.candles import CandleError, Market
from smc_ml.config import UserError
from smc_ml.costs import Costs
from smc_ml.evaluation.intervals import Interval
from smc_ml.evaluation.trials import TrialError, read_trials
from smc_ml.evaluation.verdict import Detectable, Evidence, decide, verdict
from smc_ml.features.config import FeatureConfig
from smc_ml.features.inputs import FeatureInputs, smoothing_rows
from smc_ml.features.series import _close_place
from smc_ml.labels.barriers import STOP, TARGET, barrier_exits
from smc_ml.labels.checks import LabelError, check_market
from smc_ml.labels.config import HorizonConfig, LabelingConfig, WeightConfig
from smc_ml.labels.finer import settle_doubts
from smc_ml.labels.horizons import horizon_targets
from smc_ml.labels.statistics import get_pattern_statistics
from smc_ml.labels.weights import return_attribution, sample_weights
from smc_ml.patterns.config import PatternConfig
from smc_ml.patterns.detectors import DETECTORS
from smc_ml.patterns.events import CANDLE_RECORD, EVENT_RECORD, rough_candles, run
from smc_ml.patterns.order_blocks import _extreme
from smc_ml.patterns.streaming import PatternStream
from smc_ml.patterns.volume_profile import rolling_profile
from smc_ml.trading.account import _Bought, _exposure, run_backtest
from smc_ml.trading.config import BacktestConfig
from smc_ml.trading.costs import kelly_share
from smc_ml.trading.results import monthly_table, random_entries
from smc_ml.trading.selection import _days_a_year, judge
from smc_ml.trading.sentences import account_sentence, charged_points, cost_sentence

TIME = pd.date_range("2024-01-31 23:30", periods=12, freq="5min", tz="UTC")
OPENS = np.array([100.0, 101, 99, 102.5, 98, 103, 97.2, 104.1, 96, 105, 95.3, 106])
CLOSES = np.array([100.5, 99.4, 102, 98.7, 102.6, 97.9, 103.5, 96.6, 104.4, 95.9, 105.5, 100.2])
FREE = Costs(fee_rate=0.0, slippage_rate=0.0)


def rough_market() -> Market:
    "Candles of which no two are alike."
    candles = pd.DataFrame({"open": OPENS, "close": CLOSES}, index=TIME)
    candles["high"] = candles.max(axis=1) + np.linspace(0.1, 0.9, 12)
    candles["low"] = candles.min(axis=1) - np.linspace(0.8, 0.2, 12)
    return Market({"A": candles}, "5m")


def trade(entry: int, exit: int, direction: int = 1) -> pd.DataFrame:
    "One trade from open to open, with its stop five away."
    return pd.DataFrame(
        {
            "event_id": [0],
            "symbol": "A",
            "direction": direction,
            "time": TIME[[entry]],
            "entry_at": TIME[[entry]],
            "entry": OPENS[entry],
            "stop": OPENS[entry] - 5.0 * direction,
            "target": OPENS[entry] + 9.0 * direction,
            "exit_at": TIME[[exit]],
            "exit_price": OPENS[exit],
            "exit_reason": "timeout",
            "position": 0.5 * direction,
            "realised_r": direction * (OPENS[exit] - OPENS[entry]) / 5.0,
            "won": True,
        }
    )


# Results


def test_random_entries_lie_at_every_open_from_which_the_trade_can_be_held():
    market = rough_market()
    account = run_backtest(trade(2, 5), market, TIME[0], TIME[-2], BacktestConfig(), FREE)
    means = random_entries(account, market, BacktestConfig(draws=2000))
    # the account's closes are the opens of rows 1 to 11; three candles held from row 1 to 6 end by row 9
    moves = [(OPENS[row + 3] / OPENS[row] - 1) * OPENS[2] / 5.0 for row in range(1, 7)]
    assert set(means.round(9)) == set(np.round(moves, 9))
    # eleven candles do not fit between the second open and the last but one: nine do, once
    account = run_backtest(trade(0, 11), market, TIME[0], TIME[-1], BacktestConfig(), FREE)
    means = random_entries(account, market, BacktestConfig(draws=200))
    np.testing.assert_allclose(means, (OPENS[10] / OPENS[1] - 1) * OPENS[0] / 5.0)


def test_a_month_without_a_trade_costs_nothing():
    market = rough_market()
    costs = Costs(fee_rate=0.001, slippage_rate=0.0)
    account = run_backtest(trade(8, 10), market, TIME[0], TIME[-1], BacktestConfig(), costs)
    table = monthly_table(account)
    assert table.index.tolist() == ["2024-01", "2024-02"]
    assert table.loc["2024-01", ["trades", "return", "fees", "slippage", "funding"]].tolist() == [0] * 5
    fees = 0.001 * 0.5 * 1e5 * (1 + OPENS[10] / OPENS[8])
    assert table.loc["2024-02", "fees"] == pytest.approx(fees) and table["trades"].tolist() == [0, 1]


# Sentences


def charged(**changed: object) -> str:
    known = {"market": "spot", "fee_rate": 0.001, "slippage_rate": 0.0002, "half_spread_rate": 0.0003}
    known |= {"funding_rate": 0.0001, "spread_known_share": 0.25, "funding_known_share": 0.5}
    return cost_sentence(known | changed)


def test_costs_known_of_some_trades_are_said_with_their_share_and_what_is_assumed_of_the_others():
    assert charged() == (
        "Charged from the data: half the bid–ask spread per side (known of 25 % of the trades) and funding "
        "(known of 50 % of the trades); assumed: a spot fee of 10.0 bp and slippage of 2.0 bp per side, "
        "half-spread 3.0 bp, funding of 1.0 bp every eight hours."
    )
    assert charged(spread_known_share=1.0, funding_known_share=1.0, half_spread_rate=0.0) == (
        "Charged from the data: half the bid–ask spread per side and funding; assumed: a spot fee of 10.0 bp "
        "and slippage of 2.0 bp per side."
    )
    assert "half-spread none beyond the slippage, no funding." in charged(
        half_spread_rate=0.0, funding_rate=0.0
    )


@pytest.mark.parametrize(
    "low, high, side",
    [(0.01, 0.4, "above zero"), (-0.4, -0.01, "below zero"), (-0.4, 0.01, "not distinguishable from zero")],
)
def test_an_expectancy_lies_above_or_below_zero_by_its_bounds_alone(low, high, side):
    metrics = {"trades": 40, "mean_r": (low + high) / 2, "mean_r_low": low, "mean_r_high": high}
    metrics |= {"break_even_cost_basis_points": 3.0, "charged_cost_basis_points": 5.0}
    assert f", {side}. " in account_sentence(metrics)


# The account


def test_nothing_is_staked_where_a_win_wins_nothing():
    chance, win = np.array([0.9, 0.9, 0.9, 0.5]), np.array([0.0, -0.1, 1.0, 1.0])
    np.testing.assert_allclose(kelly_share(chance, win, np.ones(4)), [0.0, 0.0, 0.8, 0.0])


def test_an_account_of_which_nothing_is_left_has_no_infinite_exposure():
    bought = _Bought(
        pd.DataFrame({"units": [3.0]}), np.array([0]), np.array([5]), np.array([0]), np.zeros(3), 0.0
    )
    marks = np.array([[100.0], [99.0], [98.0], [97.0], [96.0], [95.0]])
    exposure = _exposure(bought, marks, np.array([1000.0, 0.0, 1000.0]))
    assert exposure.tolist() == [pytest.approx(3 * 99 / 1000), 0.0, 0.0]


# The judgement


def test_of_strategies_that_never_gained_or_lost_anything_none_is_superior():
    days = pd.date_range("2024-01-01", periods=40, freq="1D", tz="UTC")
    found = judge(pd.DataFrame(0.0, days, ["a", "b"]), "a", 2)
    assert found.superiority == "none ever gained or lost anything" and found.idle == ("a", "b")
    assert _days_a_year(days) == 365.25 and _days_a_year(days[[0, 3, 9]]) == pytest.approx(365.25 * 0.3)


def test_what_was_charged_is_told_before_what_was_to_be():
    rates = {"fee_rate": 0.001, "slippage_rate": 0.0002}
    assert charged_points(rates | {"charged_cost_basis_points": 7.0}) == 7.0
    to_be = charged_points(rates | {"charged_cost_basis_points": None})
    assert to_be == charged_points(rates) == pytest.approx(12.0)
    assert charged_points({"fee_rate": 0.001}) is None


# The verdict


def found(gain: float, auc: float, mean: float, trades: int = 100) -> Evidence:
    "Evidence with intervals of ±1, in these places."
    return Evidence(
        *(
            Interval(zero + at, zero + at - 1, zero + at + 1)
            for zero, at in ((0.0, gain), (0.5, auc), (0.0, mean))
        ),
        trades,
    )


def test_what_would_be_seen_with_80_percent_power_lies_043_half_intervals_above_zero():
    "0.842 standard errors, of which half a 95 % interval has 1.960."
    tried = Detectable(0.3, 0.3)
    assert decide(found(0.42, 0.42, 0.0), tried) == "absent"
    assert decide(found(0.44, 0.42, 0.0), tried) == decide(found(0.42, 0.44, 0.0), tried) == "unknown"
    assert decide(found(2.0, 2.0, 0.42), tried) == "absent"
    assert decide(found(2.0, 2.0, 0.44), tried) == "unknown"


@pytest.mark.parametrize(
    "skill, profit, joint", [(2.0, 0.0, "but"), (0.0, 2.0, "but"), (2.0, 2.0, "and"), (0.0, 0.0, "and")]
)
def test_information_and_profit_that_disagree_are_joined_by_but(skill, profit, joint):
    assert f"), {joint} the strategy" in verdict(found(skill, skill, profit)).reasons


# Features


def test_patterns_of_the_zigzag_of_periods_and_of_other_timeframes_are_not_known_to_features():
    rows = [
        ("order_block", "5m", "internal", "", 3),
        ("order_block", "5m", "swing", "", 4),
        ("order_block", "5m", "internal", "day", 5),
        ("order_block", "15m", "internal", "", 6),
        ("fair_value_gap", "5m", "internal", "", 7),
    ]
    patterns = pd.DataFrame(rows, columns=["kind", "timeframe", "scale", "label", "known_at"])
    patterns[["direction", "top", "bottom", "strength"]] = [1, 101.0, 100.0, 0.5]
    patterns["known_at"] = TIME[patterns["known_at"]] + pd.Timedelta("5min")
    patterns["ended_at"] = pd.Series([TIME[9] + pd.Timedelta("5min")]).reindex(range(5)).array
    inputs = FeatureInputs(FeatureConfig(), PatternConfig(), "5m", rough_market()["A"], patterns)
    known = inputs.known("order_block", ["5m"])
    assert (known.start.tolist(), known.end.tolist()) == ([3], [9])
    assert inputs.known("order_block", ["5m", "15m"]).start.tolist() == [3, 6]
    assert inputs.known("order_block", ["5m", "15m"]).end.tolist() == [9, 12]


# Detectors


@pytest.mark.parametrize("preset", ["none", "tradingview"])
@pytest.mark.parametrize("name", ["fractals", "zigzag", "gaps", "pools", "profiles"])
def test_a_detector_looks_back_as_far_as_it_says_and_no_farther(name, preset):
    "On a ring of the fewest candles, a power of two, that holds what it says, it finds what it finds on all."
    config = PatternConfig.preset(
        preset, pivot_length=5, swing_age=200, profile_window=100, profile_every=5, minimum_gap=0.0
    )
    often = {"equal_tolerance": 0.5, "wilder_window": 20, "swing_leg_length": 10}
    config = config.model_copy(update=often | {"gap_body": config.gap_body and 0.5})
    (row,) = (row.by(config) for row in DETECTORS if row.name == name)
    if row.reads:
        pytest.skip("what it reads is tested elsewhere")
    candles, step, found = rough_candles(700, seed=3), 300_000_000_000, [np.zeros(0, EVENT_RECORD)]
    everything = run(row.run, candles, *row.arguments(config, step), *row.state(config))
    ring = np.zeros(2 ** int(row.looks_back(config)).bit_length(), candles.dtype)
    told = (*row.arguments(config, step), *row.state(config))
    for number, candle in enumerate(candles):
        ring[number & (len(ring) - 1)] = candle
        out = np.zeros(row.room(config), EVENT_RECORD)
        found.append(out[: row.run(ring, len(ring) - 1, number, number + 1, *told, out)[1]])
    assert len(everything) > 20 and np.concatenate(found).tobytes() == everything.tobytes()


def test_of_extremes_that_tie_the_last_one_is_the_order_block():
    candles = np.zeros(4, CANDLE_RECORD)
    candles["low"], candles["high"] = [3.0, 1.0, 1.0, 2.0], [6.0, 7.0, 7.0, 5.0]
    assert _extreme(candles, -1, 0, 4, 1) == (2, 1.0) and _extreme(candles, -1, 0, 4, -1) == (2, -7.0)
    assert _extreme(candles, -1, 0, 2, 1) == (1, 1.0)


def test_candles_without_volume_have_no_profile():
    candles = rough_market()["A"].assign(volume=[0.0] * 6 + [3.0] + [0.0] * 5)
    known = rolling_profile(candles, 3, bins=4).notna().all(axis=1)
    assert np.flatnonzero(known).tolist() == [6, 7, 8]


def test_made_up_candles_have_ties_a_flat_stretch_and_one_hole_of_half_a_day():
    candles, step = rough_candles(700, seed=3), 300_000_000_000
    gaps = np.diff(candles["time"])
    assert gaps[419] == 145 * step and (np.delete(gaps, 419) == step).all()
    flat = np.ptp([candles[name][100:111] for name in ("open", "high", "low", "close")])
    assert flat == 0.0 and candles["high"][111] > candles["low"][111]
    assert (candles["high"] >= np.maximum(candles["open"], candles["close"])).all()
    assert (candles["low"] <= np.minimum(candles["open"], candles["close"])).all()
    assert (np.diff(candles["high"]) == 0).sum() > 20  # beyond the eleven flat ones


# Labels


def doubtful(side: int, thirds: list[tuple[float, float, float]]) -> tuple[tuple[np.ndarray, ...], list]:
    """A trade from 100 with its stop at 98 and its target at 103, upside down for a short, over one candle.

    Its exits before and after the three thirds of that candle, each open, high and low, have been looked at.
    """
    rows = np.array([(100.0, 100.6, 99.4)] * 3 + thirds + [(100.0, 100.9, 99.2)] * 3)
    if side < 0:
        rows = 200 - rows[:, [0, 2, 1]]
    index = pd.date_range("2024-01-01", periods=9, freq="5min", tz="UTC")
    finer = pd.DataFrame(rows, index=index, columns=["open", "high", "low"])
    candles = finer.resample("15min").agg({"open": "first", "high": "max", "low": "min"})
    mirror = (lambda price: price) if side > 0 else (lambda price: 200 - price)
    events = pd.DataFrame({"entry_row": [1], "direction": [side], "entry": [100.0]})
    events = events.assign(stop=mirror(98.0), target=mirror(103.0))
    given = (events[name].to_numpy() for name in ("entry_row", "direction", "stop", "target"))
    exits = barrier_exits(*(candles[name].to_numpy() for name in candles), *given, 5)
    before = [one[0].item() for one in exits]
    settle_doubts(candles, finer, events, exits, LabelingConfig(), "TEST", "15m")
    row, reason, price, *_, doubt = (one[0].item() for one in exits)
    assert before[0] == row == 1 and before[1:3] == [STOP, mirror(98.0)] and before[5]
    return reason, mirror(price), doubt


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize(
    "thirds, settled",
    [
        ([(100.0, 104.0, 99.5), (103.5, 103.6, 97.0), (97.5, 98.5, 97.2)], (TARGET, 103.0, False)),
        ([(100.0, 101.0, 97.0), (97.5, 104.0, 97.2), (103.0, 103.5, 102.0)], (STOP, 98.0, False)),
        ([(100.0, 101.0, 99.0), (97.5, 104.0, 97.0), (103.0, 103.1, 102.5)], (STOP, 97.5, False)),
        ([(100.0, 104.0, 97.0), (97.5, 98.5, 97.2), (98.0, 98.5, 97.6)], (STOP, 98.0, True)),
    ],
    ids=["target first", "stop first", "opened beyond the stop", "both in one third"],
)
def test_what_a_candle_leaves_in_doubt_is_settled_by_its_thirds(side, thirds, settled):
    assert doubtful(side, thirds) == settled


def test_a_doubt_that_is_settled_in_the_last_candle_forgets_nothing_of_the_first():
    rows = [(100.0, 100.6, 98.5)] * 3 + [(100.0, 104.0, 99.5), (103.5, 103.6, 97.0), (97.5, 98.5, 97.2)]
    index = pd.date_range("2024-01-01", periods=6, freq="5min", tz="UTC")
    finer = pd.DataFrame(rows, index=index, columns=["open", "high", "low"])
    candles = finer.resample("15min").agg({"open": "first", "high": "max", "low": "min"})
    events = pd.DataFrame({"entry_row": [0], "direction": [1], "entry": [100.0]}).assign(
        stop=98.0, target=103.0
    )
    given = (events[name].to_numpy() for name in ("entry_row", "direction", "stop", "target"))
    exits = barrier_exits(*(candles[name].to_numpy() for name in candles), *given, 5)
    settle_doubts(candles, finer, events, exits, LabelingConfig(), "TEST", "15m")
    assert [one[0].item() for one in exits] == [1, TARGET, 103.0, 103.0, 98.5, False]


def test_columns_that_labels_lack_are_refused_whatever_their_name():
    labels = pd.DataFrame({"time": TIME[:2], "won": [True, False]})
    for name in ("hour", "weekday"):
        with pytest.raises(LabelError, match=f"labels have no column {name}: add what was known"):
            get_pattern_statistics(labels, name)


@pytest.mark.parametrize("strange, refused", [(2, False), (3, True), (4, True)])
def test_patterns_are_of_another_symbol_where_more_than_half_of_them_lie_off_the_candles(strange, refused):
    candles = rough_market()["A"]
    bottom = np.where(np.arange(4) < strange, 500.0, 100.0)
    patterns = pd.DataFrame({"known_at": TIME[3:7], "bottom": bottom, "top": bottom + 1.0})
    if not refused:
        return check_market(candles, patterns, "A", "5m")
    with pytest.raises(LabelError, match=f"A: {strange} of 4 patterns lie at prices without candles"):
        check_market(candles, patterns, "A", "5m")


def test_a_candle_that_comes_twice_is_no_future():
    candles = rough_market()["A"].iloc[[0, 1, 1, 2]]
    with pytest.raises(CandleError, match=r"open_time 2024-01-31 23:35.* is there twice"):
        horizon_targets(candles, HorizonConfig(), "5m")


def overlapping(symbols: list[str]) -> pd.DataFrame:
    "Two trades, one from the second open to the sixth, the other from the fourth to the eighth."
    entry, exit = TIME[[1, 3]], TIME[[5, 7]]
    return pd.DataFrame({"symbol": symbols, "time": entry, "entry_at": entry, "exit_at": exit})


def test_a_trade_owns_the_returns_of_its_candles_but_for_what_it_shares_within_its_symbol():
    market = rough_market()
    market = Market({"A": market["A"], "B": market["A"]}, "5m")
    moved = np.diff(np.log(CLOSES), prepend=np.log(OPENS[0]))
    shared = (moved[3] + moved[4]) / 2
    own = np.abs([moved[1] + moved[2] + shared, shared + moved[5] + moved[6]])
    alone = np.abs([moved[1:5].sum(), moved[3:7].sum()])
    for symbols, together, weights in (("AA", False, own), ("AB", False, alone), ("AB", True, own)):
        found = return_attribution(overlapping(list(symbols)), market, together)
        np.testing.assert_allclose(found, weights / weights.mean())
    np.testing.assert_allclose(return_attribution(overlapping(["A", "B"]), market), alone / alone.mean())


def test_weights_by_nothing_need_no_candles_and_are_equal():
    given = WeightConfig(by="none", oldest=1.0)
    assert sample_weights(overlapping(["A", "A"]), given).tolist() == [1.0, 1.0]


# Trials


def test_a_damaged_ledger_that_all_checkouts_share_is_deleted_and_ones_own_restored(tmp_path):
    for folder, remedy in (("smc_ml/trials", "delete the file"), ("trials", "restore the file with git")):
        path = tmp_path / folder / "1234.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("no trial\n")
        with pytest.raises(TrialError, match=f"line 1: not a trial as it was written: {remedy}"):
            read_trials(path)


# Series of features


def test_an_exponential_mean_knows_ten_or_twenty_times_its_length():
    assert smoothing_rows(7) == 70 and smoothing_rows(7, wilder=True) == 140


def test_the_place_of_the_close_runs_from_the_low_to_the_high():
    candles = rough_market()["A"]
    patterns = pd.DataFrame({"kind": [], "timeframe": [], "scale": [], "label": []})
    inputs = FeatureInputs(FeatureConfig(), PatternConfig(), "5m", candles, patterns)
    middle, half = (candles["high"] + candles["low"]) / 2, (candles["high"] - candles["low"]) / 2
    np.testing.assert_allclose(_close_place(inputs), (candles["close"] - middle) / half)


# Streams


@pytest.mark.parametrize("wrong", [{"low": -5.0}, {"low": 0.0}, {"volume": -1.0}])
def test_a_stream_refuses_prices_that_are_not_above_zero_and_volumes_below_it(wrong):
    candles = rough_market()["A"].assign(volume=1.0)
    stream = PatternStream(PatternConfig(), "5m")
    stream.update(candles.iloc[0])
    with pytest.raises(UserError):
        stream.update(pd.Series(candles.iloc[1].to_dict() | wrong, name=TIME[1]))
    stream.update(candles.iloc[1].rename(TIME[1]))
