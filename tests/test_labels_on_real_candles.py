"""Labels: by hand for each way out, against a slow version for every entry rule, and on a real year."""

import numpy as np
import pandas as pd
import pytest
from conftest import by_timeframe

from smc_ml.candles import TIMEFRAMES, CandleError, Market, average_true_range, resample
from smc_ml.causality import known_before, random_cuts
from smc_ml.config import ConfigError
from smc_ml.costs import Costs
from smc_ml.labels.checks import LabelError
from smc_ml.labels.config import HorizonConfig, LabelingConfig
from smc_ml.labels.horizons import horizon_targets
from smc_ml.labels.outcomes import LABEL_COLUMNS, SMCPatternLabeler, label_patterns, label_symbols
from smc_ml.labels.splits import PurgedKFold, PurgedWalkForward, SplitError
from smc_ml.labels.statistics import get_pattern_statistics
from smc_ml.labels.weights import WeightError, average_uniqueness, sample_weights
from smc_ml.patterns.config import PatternConfig
from smc_ml.patterns.confluence import confluence_at, timeframe_weights
from smc_ml.patterns.detection import detect_patterns, detect_timeframes
from smc_ml.trading.account import select_trades
from smc_ml.trading.costs import BacktestError

ENTRIES = ("next_open", "limit_edge", "limit_middle")
STEP = TIMEFRAMES["5m"]

# ---- by hand


def market(*rows) -> pd.DataFrame:
    "A wide candle and fifteen calm ones around 105, then the given (open, high, low, close)."
    table = [(105, 111, 99, 105)] + [(105, 106, 104, 105)] * 15 + list(rows)
    times = pd.date_range(
        "2024-01-01", periods=len(table), freq="5min", tz="UTC", name="open_time", unit="ns"
    )
    return pd.DataFrame(np.array(table, float), columns=["open", "high", "low", "close"], index=times).assign(
        volume=1.0
    )


def zone_after_calm(candles: pd.DataFrame, direction: int = 1, kind: str = "order_block") -> pd.DataFrame:
    "A zone from 100 to 102, known at the close of the sixteenth candle."
    top, bottom = (102.0, 100.0) if direction > 0 else (110.0, 108.0)
    return pd.DataFrame(
        {
            "kind": [kind],
            "direction": [direction],
            "timeframe": ["15m"],
            "scale": ["internal"],
            "label": ["swing"],
            "formed_at": [candles.index[3]],
            "known_at": [candles.index[15] + STEP],
            "top": [top],
            "bottom": [bottom],
            "level": [101.0],
            "strength": [1.0],
            "ended_at": [pd.NaT],
            "ended_how": [""],
        }
    )


def traded(entry: str, *rows, direction: int = 1, **settings) -> pd.Series | None:
    candles = market(*rows)
    config = LabelingConfig(
        entry=entry, stop_buffer=0, target_r=2.0, **{"maximum_bars": 3, "limit_expiry": 2} | settings
    )
    labels = label_patterns(
        candles, zone_after_calm(candles, direction), "HAND", config, Costs(fee_rate=0.0, slippage_rate=0.0)
    )
    assert len(labels) <= 1
    return labels.iloc[0] if len(labels) else None


TOUCH, QUIET = (
    (104, 104, 101, 103),
    (103, 103.5, 102.5, 103),
)  # a touch of the zone that closes above it; a candle that does nothing
# entry at 103 with the stop at 100 (R = 3, target 109); or at 102 (R = 2, target 106);
# or at 101 (R = 1, target 103)


@pytest.mark.parametrize(
    "entry, rows, reason, outcome, price, r, ambiguous, bars",
    [
        ("next_open", [TOUCH, QUIET, (103, 110, 102, 108)], "target", "win", 109, 2, False, 2),
        ("next_open", [TOUCH, QUIET, (103, 104, 99, 99.5)], "stop", "loss", 100, -1, False, 2),
        ("next_open", [TOUCH, QUIET, (97, 104, 96, 99.5)], "stop", "loss", 97, -2, False, 2),
        ("next_open", [TOUCH, (103, 110, 99, 105)], "stop", "loss", 100, -1, True, 1),
        ("next_open", [TOUCH, QUIET, (112, 113, 99, 105)], "target", "win", 112, 3, False, 2),
        ("limit_edge", [TOUCH, (107, 108, 99, 106)], "target", "win", 107, 2.5, False, 2),
        (
            "next_open",
            [TOUCH, QUIET, QUIET, QUIET, (104.5, 110, 99, 105)],
            "timeout",
            "timeout",
            104.5,
            0.5,
            False,
            3,
        ),
        ("limit_edge", [TOUCH, (103, 106, 103, 106)], "target", "win", 106, 2, False, 2),
        ("limit_edge", [(104, 104, 99, 103)], "stop", "loss", 100, -1, False, 1),
        ("limit_edge", [(104, 107, 99, 103)], "stop", "loss", 100, -1, True, 1),
        (
            "limit_edge",
            [(104, 107, 101, 103), QUIET, QUIET, (103, 103, 103, 103)],
            "timeout",
            "timeout",
            103,
            0.5,
            True,
            3,
        ),
        (
            "limit_edge",
            [(101, 105, 100.5, 103), (103, 104, 102, 103)],
            "target",
            "win",
            103,
            2,
            False,
            1,
        ),  # opens beyond the limit: filled there, at 101
        ("limit_middle", [TOUCH, (103, 103.5, 102, 103)], "target", "win", 103, 2, False, 2),
        ("limit_middle", [(104, 104, 101.5, 103), QUIET], None, "not_filled", None, None, False, 0),
    ],
)
def test_each_way_out_of_a_long(entry, rows, reason, outcome, price, r, ambiguous, bars):
    label = traded(entry, *rows)
    assert (label["outcome"], label["ambiguous"], label["holding_bars"], label["filled"]) == (
        outcome,
        ambiguous,
        bars,
        outcome != "not_filled",
    )
    if reason is None:
        assert (
            pd.isna(label["exit_reason"])
            and np.isnan(label["realised_r"])
            and pd.isna(label["entry_at"])
            and not label["won"]
        )
    else:
        assert (label["exit_reason"], label["exit_price"], label["realised_r"]) == (
            reason,
            price,
            pytest.approx(r, abs=1e-12),
        )
    assert label["label"] == {"target": 1, "stop": -1}.get(reason, 0)


def mirrored(row):
    return tuple(210 - price for price in (row[0], row[2], row[1], row[3]))


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(
    "rows",
    [
        [TOUCH, QUIET, (103, 110, 102, 108), QUIET],
        [(104, 107, 99, 103), QUIET],
        [TOUCH, QUIET, (97, 104, 96, 99.5)],
        [TOUCH, QUIET, (112, 113, 96, 99.5)],
        [QUIET] * 6,
        [TOUCH, *[QUIET] * 6],
    ],
)
def test_a_short_is_the_mirror_image_of_a_long(entry, rows):
    facts = ["outcome", "gross_r", "mfe_r", "mae_r", "ambiguous", "holding_bars"]
    long, short = (
        traded(entry, *rows, minimum_risk=1e-9),
        traded(entry, *map(mirrored, rows), direction=-1, minimum_risk=1e-9),
    )
    if long is None:
        assert short is None
    else:
        pd.testing.assert_series_equal(long[facts], short[facts], check_names=False)


def test_an_order_or_trade_that_is_still_open_has_no_label():
    assert traded("limit_middle", QUIET) is None and traded("limit_middle", QUIET, QUIET) is not None
    assert traded("next_open", TOUCH, QUIET, QUIET) is None


def test_no_order_is_given_where_the_price_is_beyond_the_stop():
    candles = market(*[QUIET] * 5)
    beyond = zone_after_calm(candles).assign(top=105.8, bottom=105.5)  # the decision row closes at 105
    for entry in ENTRIES[1:]:
        assert not len(label_patterns(candles, beyond, "HAND", LabelingConfig(entry=entry, stop_buffer=0)))


def test_the_target_is_not_taken_before_the_minimum_holding_time():
    rows = [TOUCH, (103, 110, 102, 103), (103, 110, 102, 103), QUIET, QUIET]
    assert (
        traded("next_open", *rows)["holding_bars"],
        traded("next_open", *rows, minimum_bars=1)["holding_bars"],
    ) == (1, 2)
    assert traded("next_open", TOUCH, (103, 104, 99, 100), minimum_bars=2)["exit_reason"] == "stop"


def test_costs_to_the_last_digit_on_two_trades():
    "Entered at 103 with 3 at risk: fee and slippage of 0.05 % a side are paid on 103 and on the exit."
    costs = Costs(fee_rate=0.0004, slippage_rate=0.0001)
    for rows, price, gross in (
        ([TOUCH, (103, 110, 102, 108)], 109.0, 2.0),
        ([TOUCH, (103, 104, 99, 100)], 100.0, -1.0),
    ):
        candles = market(*rows)
        label = label_patterns(
            candles, zone_after_calm(candles), "HAND", LabelingConfig(stop_buffer=0, target_r=2.0), costs
        ).iloc[0]
        assert (label["gross_r"], label["cost_r"]) == (gross, (0.0004 + 0.0001) * (103.0 + price) / 3.0)
        assert label["realised_r"] == gross - label["cost_r"]
    assert label["realised_r"] == -1.0 - 0.0005 * 203.0 / 3.0 == pytest.approx(-1.0338333333333333, abs=1e-15)


# ---- against a slow version


def slow_decision(candles, rows, pattern, edge, far, ended, config, step) -> int | None:
    "Row at whose close the trade is decided; None where it never is, or not before the zone has ended."
    closed = np.flatnonzero(candles.index + step >= pattern["known_at"])
    decision = closed[0] if len(closed) else None
    if config.entry == "next_open" and pattern["kind"] != "liquidity_sweep":
        decision, after = None, np.flatnonzero(candles.index >= pattern["known_at"])
        for row in after[: config.maximum_wait]:
            if rows[row][2] <= edge:
                decision = row if rows[row][3] >= far else None
                break
    if decision is None or decision + 1 >= len(rows):
        return None
    return None if ended is not None and ended <= candles.index[decision] + step else decision


def slow_fill(opens, rows, decision, limit, ended, config) -> tuple[int | None, int | None]:
    "Row in which an order is filled, None: in none; and the last row in which it rested, None: unknown."
    for row in range(decision + 1, decision + 1 + config.limit_expiry):
        if ended is not None and (row == len(rows) or opens[row] >= ended):
            return None, row - 1  # its zone ended: it was pulled
        if row >= len(rows):
            return None, None
        if rows[row][0] <= limit or rows[row][2] <= limit:
            return row, row
    return None, decision + config.limit_expiry


def slow_label(
    candles: pd.DataFrame,
    pattern: pd.Series,
    config: LabelingConfig,
    costs: Costs,
    step: pd.Timedelta = STEP,
) -> dict | None:
    "From the definitions, for one pattern, with all prices turned so that the trade is a long."
    side, ended = pattern["direction"], pattern["ended_at"]
    ended = None if pd.isna(ended) or ended > candles.index[-1] + step else ended  # not known
    turned = candles[["open", "high", "low", "close"]] * side
    if side < 0:
        turned = turned.rename(columns={"high": "low", "low": "high"})
    rows = list(zip(turned["open"], turned["high"], turned["low"], turned["close"], strict=True))
    edge, far = (pattern["top"], pattern["bottom"]) if side > 0 else (-pattern["bottom"], -pattern["top"])
    decision = slow_decision(candles, rows, pattern, edge, far, ended, config, step)
    if decision is None:
        return None
    zone_stop = far - config.stop_buffer * average_true_range(candles)[decision]
    entry_row, entry, seen = decision + 1, rows[decision + 1][0], rows[decision + 1][0]
    if config.entry != "next_open":
        limit, seen = edge if config.entry == "limit_edge" else (edge + far) / 2, rows[decision][3]
        entry_row, rested = slow_fill(candles.index, rows, decision, limit, ended, config)
        if rested is None:
            return None
        entry = limit if entry_row is None else min(rows[entry_row][0], limit)
    if not seen > zone_stop:
        return None
    if entry_row is None:
        return {"outcome": "not_filled", "exit_at": candles.index[rested] + step}
    risk = entry - min(zone_stop, entry - abs(entry) * config.minimum_risk)
    return slow_exit(
        candles.index,
        rows,
        entry_row,
        entry,
        entry - risk,
        entry + config.target_r * risk,
        config,
        costs,
        step,
    )


def slow_exit(times, rows, entry_row, entry, stop, target, config, costs, step) -> dict | None:
    doubt, best, worst = False, entry, entry
    for held, row in enumerate(range(entry_row, len(rows))):
        opens, high, low, _ = rows[row]
        reached, within = high >= target and held >= config.minimum_bars, held == 0 and opens != entry
        price = how = None
        if held == config.maximum_bars:
            how, price = "timeout", opens
        elif opens <= stop:
            how, price = "stop", opens
        elif opens >= target and held >= config.minimum_bars and not within:
            how, price, doubt = "target", opens, False
        elif low <= stop:
            how, price, doubt = "stop", stop, doubt or reached
        elif reached and not within:
            how, price, doubt = "target", target, False
        elif reached:
            doubt = True
        if how:
            gross, cost = (
                (price - entry) / (entry - stop),
                costs.rate * (abs(entry) + abs(price)) / (entry - stop),
            )
            return {
                "outcome": "timeout"
                if how == "timeout"
                else "win"
                if gross - cost > config.minimum_profit_r
                else "loss",
                "exit_reason": how,
                "entry": abs(entry),
                "exit_price": abs(price),
                "stop": abs(stop),
                "target": abs(target),
                "entry_at": times[entry_row],
                "exit_at": times[row] + step if how != "timeout" else times[row],
                "holding_bars": held + (how != "timeout"),
                "ambiguous": doubt,
                "gross_r": gross,
                "realised_r": gross - cost,
                "mfe_r": (max(best, price) - entry) / (entry - stop),
                "mae_r": (min(worst, price) - entry) / (entry - stop),
            }
        best, worst = best if within else max(best, high), min(worst, low)


def random_market(seed: int, size: int = 1500, gap: float = 0.1) -> tuple[pd.DataFrame, pd.DataFrame]:
    "Candles with gaps between them, and zones strewn around the price."
    generator = np.random.default_rng(seed)
    close = 100 + generator.normal(0, 0.25, size).cumsum()
    opens = np.append(100, close[:-1]) + generator.normal(0, gap, size) * (generator.random(size) < 0.3)
    high, low = (
        np.maximum(opens, close) + generator.exponential(0.15, size),
        np.minimum(opens, close) - generator.exponential(0.15, size),
    )
    times = pd.date_range("2024-01-01", periods=size, freq="5min", tz="UTC", name="open_time", unit="ns")
    keep = generator.random(size) > 0.01  # and holes in time
    candles = pd.DataFrame(
        {"open": opens, "high": high, "low": low, "close": close, "volume": 1.0}, index=times
    )[keep]
    rows = np.sort(generator.integers(20, len(candles) - 1, 250))
    side, width, height = (
        generator.choice([-1, 1], 250),
        generator.exponential(0.4, 250),
        generator.normal(0.5, 0.6, 250),
    )
    edge = candles["close"].to_numpy()[rows] - side * height
    zones = pd.DataFrame(
        {
            "kind": generator.choice(["order_block", "fair_value_gap", "liquidity_sweep"], 250),
            "direction": side,
            "timeframe": "15m",
            "scale": "internal",
            "label": "swing",
            "formed_at": candles.index[rows - 3],
            "known_at": candles.index[rows] + STEP,
            "top": np.where(side > 0, edge, edge + width),
            "bottom": np.where(side > 0, edge - width, edge),
            "level": edge,
            "strength": 1.0,
            "ended_at": endings(candles, rows, generator),
            "ended_how": "",
        }
    )
    return candles, zones.drop_duplicates("known_at", ignore_index=True)


def endings(candles: pd.DataFrame, rows: np.ndarray, generator: np.random.Generator) -> pd.DatetimeIndex:
    "Closes at which zones known at the closes of some rows end: soon, later, within a candle, or never."
    lasts = generator.choice([1, 3, 10, 40], len(rows))
    at = candles.index[np.minimum(rows + lasts, len(candles) - 1)] + STEP
    at = at - pd.to_timedelta(np.where(generator.random(len(rows)) < 0.3, 2.5, 0.0), "min")
    at = at.where(rows + lasts < len(candles), at + 3 * STEP)  # after the last candle: nobody knows
    return at.where(generator.random(len(rows)) < 0.6)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("seed", [0, 1])
def test_labels_equal_the_slow_version(entry, seed):
    candles, zones = random_market(seed)
    config = LabelingConfig(
        entry=entry,
        target_r=1.2 + seed,
        maximum_bars=20,
        minimum_bars=2 * seed,
        limit_expiry=12,
        maximum_wait=30,
        minimum_profit_r=0.1 * seed,
    )
    labels = label_patterns(candles, zones, "RANDOM", config, Costs()).set_index("known_at")
    expected = {
        pattern["known_at"]: slow
        for _, pattern in zones.iterrows()
        if (slow := slow_label(candles, pattern, config, Costs()))
    }
    assert sorted(labels.index) == sorted(expected)
    for time, slow in expected.items():
        for name, value in slow.items():
            assert labels.at[time, name] == (
                pytest.approx(value, rel=1e-9, abs=1e-9) if isinstance(value, float) else value
            ), (time, name)
    assert set(labels["outcome"]) == {"win", "loss", "timeout"} | (
        {"not_filled"} if entry != "next_open" else set()
    )
    assert labels["ambiguous"].any() == (seed == 0)  # not where the target waits for two candles


# ---- finer candles


def all_parts(inside: pd.DataFrame, parts: int) -> list[tuple]:
    "The finer candles within one candle; none of them where one is missing."
    return list(inside.itertuples(index=False, name=None)) if len(inside) == parts else []


def slow_settlement(
    label: pd.Series,
    candles: pd.DataFrame,
    finer: pd.DataFrame,
    step: pd.Timedelta,
    parts: int,
    config: LabelingConfig,
) -> tuple | None:
    """(reason, price, exit_at, mfe_r, mae_r) of an ambiguous label; None: the doubt stays.

    It is turned to a long and walked from its entry on, on finer candles where a candle leaves a doubt.
    """
    side, turn = (
        label["direction"],
        ["open", "high", "low"] if label["direction"] > 0 else ["open", "low", "high"],
    )
    entry, stop, target = (side * label[name] for name in ("entry", "stop", "target"))
    doubt, filled, best, worst = False, False, None, None
    for held, (time, (opens, high, low)) in enumerate(
        (side * candles.loc[label["entry_at"] : label["exit_at"], turn]).iterrows()
    ):
        if held == config.maximum_bars:
            return None if doubt else ("timeout", side * opens, time, label["mfe_r"], label["mae_r"])
        taken, within = held >= config.minimum_bars, held == 0 and opens != entry
        steps = [(opens, high, low)]
        if opens > stop and taken and high >= target and (low <= stop or within):
            inside = side * finer.loc[time : time + step - pd.Timedelta("1ns"), turn]
            steps = all_parts(inside, parts) or steps
        for opens, high, low in steps:
            new = not filled
            if new and opens > entry and low > entry:
                continue
            by_wick = new and opens > entry
            if new:
                filled, best, worst = True, min(opens, entry), min(opens, entry)
            if new and best <= stop:
                return None
            jumped = opens > stop and opens >= target and taken and not by_wick
            reason, price = (
                ("stop", opens)
                if opens <= stop
                else ("target", opens)
                if jumped
                else ("stop", stop)
                if low <= stop
                else ("target", target)
                if high >= target and taken and not by_wick
                else (None, None)
            )
            if opens > stop and high >= target and taken:
                doubt = reason != "target"
            if reason and doubt:
                return None
            if reason:
                return (
                    reason,
                    side * price,
                    time + step,
                    (max(best, price) - entry) / (entry - stop),
                    (min(worst, price) - entry) / (entry - stop),
                )
            best, worst = best if by_wick else max(best, high), min(worst, low)
        if not filled:
            return None


def compare_settled(candles, zones, finer, config, timeframe, parts, symbol) -> pd.Series:
    """Assert that labels with finer candles are those of the slow version.

    Returns what became of the ambiguous ones.
    """
    plain, settled = (
        label_patterns(candles, zones, symbol, config, timeframe=timeframe, finer=shorter)
        for shorter in (None, finer)
    )
    found, moved, facts = [], [], ["exit_reason", "exit_price", "exit_at", "mfe_r", "mae_r"]
    for row in np.flatnonzero(plain["ambiguous"]):
        before, after = plain.iloc[row], settled.iloc[row]
        slow = slow_settlement(before, candles, finer, TIMEFRAMES[timeframe], parts, config)
        assert after["ambiguous"] == (slow is None), row
        if slow and slow[:2] != (before["exit_reason"], before["exit_price"]):
            assert after[facts].tolist() == [
                *slow[:3],
                *(pytest.approx(value, abs=1e-9) for value in slow[3:]),
            ], row
            moved.append(row)
        found.append(f"{slow[0]}{', moved' * (row in moved)}" if slow else "in doubt")
    pd.testing.assert_frame_equal(
        plain.drop(index=moved, columns="ambiguous"),
        settled.drop(index=moved, columns="ambiguous"),
        check_exact=True,
    )
    assert not (settled["ambiguous"] & ~plain["ambiguous"]).any()
    assert (
        not len(settled)
        or (settled["mfe_r"] >= settled["gross_r"] - 1e-12)[settled["filled"]].all()
        and (settled["mae_r"] <= settled["gross_r"] + 1e-12)[settled["filled"]].all()
    )
    assert (settled["exit_at"] <= plain["exit_at"]).all()
    return pd.Series(found, dtype=object).value_counts()


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("minimum_bars", [0, 2])
def test_finer_candles_settle_as_the_slow_version_does(entry, minimum_bars):
    "Jumpy quarter hours, made of five-minute candles of which some were lost."
    seen = pd.Series(dtype=int)
    for seed in range(3):
        finer, zones = random_market(seed, size=4500, gap=0.5)
        candles = resample(finer, "5m", "15m")
        zones = zones.assign(
            known_at=zones["known_at"].dt.floor("15min"), formed_at=zones["formed_at"].dt.floor("15min")
        )
        zones = zones[zones["known_at"].between(candles.index[20], candles.index[-1])].drop_duplicates(
            "known_at", ignore_index=True
        )
        config = LabelingConfig(
            entry=entry,
            target_r=1.0,
            minimum_risk=0.001,
            stop_buffer=0,
            maximum_bars=4 + seed,
            minimum_bars=minimum_bars,
            limit_expiry=12,
        )
        lost = finer[np.random.default_rng(seed).random(len(finer)) > 0.1]
        for shorter in (finer, lost):
            seen = seen.add(
                compare_settled(candles, zones, shorter, config, "15m", 3, "RANDOM"), fill_value=0
            )
    expected = {"stop", "target, moved", "in doubt"} | (
        set() if minimum_bars else {"stop, moved"} | ({"timeout"} if entry != "next_open" else set())
    )
    assert set(seen.index) >= expected, seen


# ---- on a real market


@pytest.fixture(scope="module")
def real(bitcoin) -> pd.DataFrame:
    return bitcoin.iloc[:12_000]


@pytest.fixture(scope="module")
def patterns(real) -> pd.DataFrame:
    return detect_timeframes(by_timeframe(real))


@pytest.mark.parametrize("entry", ENTRIES)
def test_real_five_minute_candles_settle_real_quarter_hours(real, patterns, entry):
    quarters = resample(real, "5m", "15m")
    for settings in (
        {},
        {"target_r": 0.7, "minimum_risk": 0.001},
        {"target_r": 0.7, "minimum_risk": 0.001, "minimum_bars": 1},
    ):
        found = compare_settled(
            quarters, patterns, real, LabelingConfig(entry=entry, **settings), "15m", 3, "BTCUSDT"
        )
        assert found.drop("in doubt").sum() > found.sum() / 4 and found["target, moved"] >= 3, found


def test_a_doubt_is_settled_by_no_candle_after_the_exit(real, patterns):
    quarters, config = (
        resample(real, "5m", "15m"),
        LabelingConfig(entry="limit_edge", target_r=0.7, minimum_risk=0.001),
    )
    whole = label_patterns(quarters, patterns, "BTCUSDT", config, timeframe="15m", finer=real)
    for end in random_cuts(len(quarters), 5, seed=4, first=1500):
        closed = quarters.index[end]
        seen = label_patterns(
            quarters.iloc[:end],
            known_before(patterns, closed),
            "BTCUSDT",
            config,
            timeframe="15m",
            finer=real[real.index < closed],
        )
        columns = [*DECIDED, "outcome", "realised_r", "mfe_r", "mae_r", "exit_at", "ambiguous"]
        over, same = (
            table.loc[table["exit_at"] < closed, columns].reset_index(drop=True) for table in (whole, seen)
        )
        assert len(over) > 100
        pd.testing.assert_frame_equal(over, same, check_exact=True)


DECIDED = ["kind", "direction", "known_at", "time", "entry", "stop", "target", "confluence"]


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_decision_is_the_same_when_the_future_is_cut(real, patterns, entry):
    """What was decided, at which price and with which barriers uses nothing after the entry.

    Whatever is over stays as it was.
    """
    config = LabelingConfig(entry=entry)
    whole = label_patterns(real, patterns, "BTCUSDT", config)
    for end in random_cuts(len(real), 12, seed=3, first=2500):
        closed = real.index[end - 1] + STEP
        seen = label_patterns(real.iloc[:end], known_before(patterns, closed), "BTCUSDT", config)
        over = whole[whole["exit_at"] < closed].reset_index(drop=True)
        same = seen[seen["exit_at"] < closed].reset_index(drop=True)
        assert len(over) > 100
        pd.testing.assert_frame_equal(
            over[[*DECIDED, "outcome", "realised_r", "exit_at"]],
            same[[*DECIDED, "outcome", "realised_r", "exit_at"]],
        )


ENDINGS = ({"join_gaps": True}, {"zone_age": 50}, {})


@pytest.fixture(scope="module")
def ending(bitcoin) -> list[tuple[PatternConfig, pd.DataFrame]]:
    "Five-minute zones that end in many ways."
    found = []
    for settings in ENDINGS:
        config = PatternConfig(timeframes=["5m"], gap_middle="any", **settings)
        found.append((config, detect_patterns(bitcoin.iloc[:9000], config)))
    return found


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("case", range(len(ENDINGS)))
def test_nothing_is_decided_or_filled_once_the_zone_has_ended(bitcoin, ending, entry, case):
    (pattern_config, zones), candles = ending[case], bitcoin.iloc[:9000]
    config = LabelingConfig(timeframes=["5m"], entry=entry, scales=["internal", "swing"])
    labels = label_patterns(candles, zones, "BTC", config, pattern_config=pattern_config)
    names = ["kind", "direction", "formed_at", "known_at", "top", "bottom", "scale"]
    alike = labels.merge(zones[[*names, "ended_at", "ended_how"]], on=names)
    assert len(alike) >= len(labels) > 1000
    ended = alike["ended_at"].notna()
    assert ended.mean() > 0.5
    assert not (alike["time"] >= alike["ended_at"]).any()
    if entry == "next_open":
        assert alike["filled"].all()
        return
    assert not (alike["entry_at"] >= alike["ended_at"]).any()  # pulled with its zone
    pulled = alike[~alike["filled"] & (alike["exit_at"] >= alike["ended_at"])]
    assert len(pulled) > 20 * (case < 2) - 1 and (pulled["exit_at"] == pulled["ended_at"]).all()


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_end_that_is_not_known_yet_changes_nothing(bitcoin, ending, entry):
    "Cut anywhere, with zones that expire and gaps that join, what is over is the same."
    candles = bitcoin.iloc[:9000]
    for pattern_config, zones in ending[:2]:
        config = LabelingConfig(timeframes=["5m"], entry=entry)
        whole = label_patterns(candles, zones, "BTC", config, pattern_config=pattern_config)
        for end in random_cuts(len(candles), 4, seed=5, first=2500):
            now = candles.index[end - 1] + STEP
            past = known_before(zones, now)
            seen = label_patterns(candles.iloc[:end], past, "BTC", config, pattern_config=pattern_config)
            over, same = (
                table.loc[table["exit_at"] < now, [*DECIDED, "outcome", "exit_at"]].reset_index(drop=True)
                for table in (whole, seen)
            )
            assert len(over) > 200
            pd.testing.assert_frame_equal(over, same)


@pytest.mark.parametrize("entry", ENTRIES)
def test_what_a_label_says_agrees_with_itself_and_with_the_candles(real, patterns, entry):
    labels = SMCPatternLabeler(LabelingConfig(entry=entry)).label(real, "BTCUSDT", patterns=patterns)
    assert list(labels.columns) == list(LABEL_COLUMNS)
    filled, side = labels[labels["filled"]], labels["direction"][labels["filled"]]
    assert (len(filled) == len(labels)) == (entry == "next_open")
    assert (
        (labels["known_at"] <= labels["time"]).all()
        and (filled["time"] <= filled["entry_at"]).all()
        and (filled["entry_at"] < filled["exit_at"]).all()
    )
    candle = real.loc[filled["entry_at"]]
    assert (
        (candle["low"].to_numpy() <= filled["entry"]) & (filled["entry"] <= candle["high"].to_numpy())
    ).all()
    assert (
        (filled["mfe_r"] >= filled["gross_r"]).all()
        and (filled["mae_r"] <= filled["gross_r"]).all()
        and (filled["mfe_r"] >= 0).all()
        and (filled["mae_r"] <= 0).all()
    )
    assert ((filled["exit_at"] - filled["entry_at"]) == filled["holding_bars"] * STEP).all()
    assert (filled.loc[filled["ambiguous"], "exit_reason"] != "target").all()
    assert (side * (filled["target"] - filled["entry"]) > 0).all() and (
        side * (filled["entry"] - filled["stop"]) > 0
    ).all()
    assert labels["confluence"].between(-1, 1).mean() > 0.9


def test_confluence_is_what_one_would_have_computed_at_the_decision(real, patterns):
    labels = label_symbols(Market({"BTCUSDT": real}, "5m"), {"BTCUSDT": patterns})
    weights = timeframe_weights(PatternConfig().timeframes)
    higher = {name: weights[name] for name in ("1h", "4h", "1d")}
    for _, label in labels[labels["confluence"].notna()].sample(20, random_state=1).iterrows():
        known, close = known_before(patterns, label["time"]), real["close"].iloc[label["row"]]
        assert label["confluence"] == pytest.approx(
            confluence_at(pd.DatetimeIndex([label["time"]]), [close], known, weights=higher)["score"].iloc[0]
            * label["direction"]
        )


def test_the_labeler_finds_the_patterns_by_itself(real):
    candles = real.iloc[:3000]
    found = detect_timeframes(by_timeframe(candles))
    labeler = SMCPatternLabeler()
    pd.testing.assert_frame_equal(
        labeler.label(candles, "BTCUSDT"),
        labeler.label(candles, "BTCUSDT", patterns=found),
    )
    hourly = resample(real, "5m", "1h")
    assert len(SMCPatternLabeler(LabelingConfig(timeframes=["1h"])).label(hourly, "BTCUSDT", "1h")) > 20


def test_statistics_count_every_event_once(real, patterns):
    labels = SMCPatternLabeler(LabelingConfig(entry="limit_middle")).label(real, "BTCUSDT", patterns=patterns)
    table = get_pattern_statistics(labels)
    assert table["events"].sum() == len(labels) and table["trades"].sum() == labels["filled"].sum()
    assert ((table["win_low"] <= table["win_rate"]) & (table["win_rate"] <= table["win_high"])).all()
    assert (table["expectancy_r"] * table["events"]).sum() == pytest.approx(labels["realised_r"].sum())
    sessions = get_pattern_statistics(labels, "session")
    assert set(sessions.index) == {"asia", "london", "new_york", "none"} and sessions["events"].max() < len(
        labels
    )


def test_overlapping_real_trades_weigh_less(real, patterns):
    labels = label_symbols(Market({"BTCUSDT": real}, "5m"), {"BTCUSDT": patterns})
    unique, weights = average_uniqueness(labels), sample_weights(labels)
    assert 0 < unique.min() < unique.mean() < 0.9 and unique.max() <= 1 and weights.mean() == pytest.approx(1)
    start, end = labels["entry_at"].to_numpy(), labels["exit_at"].to_numpy()
    crowd = np.array([((start < b) & (end > a)).sum() for a, b in zip(start, end, strict=True)])
    assert (unique >= 1 / crowd - 1e-12).all() and (unique[crowd == 1] == 1).all()


def test_targets_of_horizons_are_those_of_the_candles(real):
    targets = horizon_targets(real, HorizonConfig())
    log = np.log(real)
    for horizon, bars in (("15m", 3), ("1h", 12), ("4h", 48), ("12h", 144)):
        expected = log["close"].shift(-bars) - log["open"].shift(-1)
        np.testing.assert_allclose(targets[f"return_{horizon}"], expected, rtol=0, atol=1e-12)
        assert (
            targets[f"return_{horizon}"].iloc[-bars:].isna().all()
            and targets[f"return_{horizon}"].iloc[:-bars].notna().all()
        )
        assert targets[f"direction_{horizon}"].value_counts(normalize=True).between(0.15, 0.7).all()
        ahead = log["low"][::-1].rolling(bars).min()[::-1].shift(-1) - log["open"].shift(-1)
        np.testing.assert_allclose(targets[f"drawdown_{horizon}"], ahead, rtol=0, atol=1e-12)


# ---- bad input


def test_patterns_and_candles_that_do_not_belong_together_are_refused(real, ether, patterns):
    labeler = SMCPatternLabeler()
    with pytest.raises(
        LabelError, match=r"ETHUSDT: \d+ of \d+ patterns lie at prices without candles: .* of another symbol"
    ):
        labeler.label(ether.iloc[:12_000], "ETHUSDT", patterns=patterns)
    with pytest.raises(LabelError, match="BTCUSDT: the patterns are of ETHUSDT"):
        labeler.label(real, "BTCUSDT", patterns=patterns.assign(symbol="ETHUSDT"))
    with pytest.raises(LabelError, match="BTCUSDT: a pattern is known at .* but the candles are from"):
        labeler.label(real.iloc[:5000], "BTCUSDT", patterns=patterns)
    with pytest.raises(LabelError, match="BTCUSDT: a pattern is known at .* but the candles are from"):
        labeler.label(real.iloc[5000:], "BTCUSDT", patterns=patterns)
    with pytest.raises(LabelError, match="labels.timeframes is 15m, but the patterns are of 1h"):
        labeler.label(real, "BTCUSDT", patterns=patterns[patterns["timeframe"] == "1h"])
    with pytest.raises(LabelError, match="15m patterns cannot be traded on 1h candles"):
        labeler.label(resample(real, "5m", "1h"), "BTCUSDT", "1h", patterns)
    with pytest.raises(LabelError, match="no timeframe '7m'"):
        labeler.label(real, "BTCUSDT", "7m")
    with pytest.raises(LabelError, match="0 days 00:05:00 apart"):
        label_patterns(real, patterns, "BTCUSDT", timeframe="15m")
    with pytest.raises(LabelError, match="BTCUSDT: no candles"):
        label_patterns(real[:0], patterns, "BTCUSDT")


def test_finer_candles_of_another_market_or_timeframe_are_refused(real, ether, patterns):
    quarters, hourly = (resample(real, "5m", timeframe) for timeframe in ("15m", "1h"))

    def label(finer):
        return SMCPatternLabeler().label(quarters, "BTCUSDT", "15m", patterns, finer)

    with pytest.raises(
        LabelError,
        match="BTCUSDT: the candle of .* reaches from .* its finer candles from .* of another market",
    ):
        label(ether.iloc[:12_000])
    with pytest.raises(LabelError, match="of another market, or their times are shifted"):
        label(real.shift(freq="1h"))
    with pytest.raises(
        LabelError,
        match="BTCUSDT: finer candles of 15 minutes do not divide candles of 15m: "
        "give candles of a shorter timeframe",
    ):
        label(quarters)
    with pytest.raises(LabelError, match="BTCUSDT: finer candles of 60 minutes do not divide candles of 15m"):
        label(hourly)
    with pytest.raises(LabelError, match="BTCUSDT: finer candles of 10 minutes do not divide candles of 15m"):
        label(real.iloc[::2])
    with pytest.raises(CandleError, match="stands after"):
        label(real.iloc[::-1])


def minutes_through(candles: pd.DataFrame) -> pd.DataFrame:
    "A made-up course through each five-minute candle in five minutes: open, high, low, close, and rest."
    corners = candles[["open", "high", "low", "close", "close"]].to_numpy()
    opens = np.column_stack([corners[:, :1], corners[:, :-1]]).ravel()
    times = candles.index.repeat(5) + pd.to_timedelta(np.tile(np.arange(5), len(candles)), unit="min")
    return pd.DataFrame(
        {
            "open": opens,
            "high": np.maximum(opens, corners.ravel()),
            "low": np.minimum(opens, corners.ravel()),
        },
        index=times,
    )


def test_a_symbol_without_finer_candles_is_labelled_as_ever(real, patterns):
    config, candles = LabelingConfig(entry="limit_edge", target_r=0.7, minimum_risk=0.001), real.iloc[:4000]
    known = known_before(patterns, candles.index[-1])
    plain, settled = (
        label_symbols(
            Market({"A": candles, "B": candles}, "5m"), {"A": known, "B": known}, config, finer=finer
        )
        for finer in (None, {"B": minutes_through(candles), "C": candles})
    )
    pd.testing.assert_frame_equal(
        plain[plain["symbol"] == "A"], settled[settled["symbol"] == "A"], check_exact=True
    )
    mine = plain["symbol"] == "B"
    assert 0 < settled.loc[mine, "ambiguous"].sum() < plain.loc[mine, "ambiguous"].sum() * 0.6


def test_labels_without_end_times_are_refused_by_all_who_need_them(real, patterns):
    labels = label_symbols(Market({"BTCUSDT": real}, "5m"), {"BTCUSDT": patterns})
    endless = labels.assign(exit_at=labels["exit_at"].mask(labels["event_id"] == 7))
    predictions = pd.DataFrame({"event_id": labels["event_id"], "probability": 0.5, "expected_r": 1.0})
    with pytest.raises(WeightError, match="exit_at is missing at row 7"):
        sample_weights(endless)
    with pytest.raises(SplitError, match="1 of .* labels have no exit_at, first BTCUSDT at "):
        list(PurgedKFold(4, pd.Timedelta("1h")).split(endless))
    with pytest.raises(BacktestError, match="BTCUSDT: the event decided at .* has no entry_at or exit_at"):
        select_trades(predictions, endless)
    with pytest.raises(SplitError, match="no column exit_at"):
        list(PurgedWalkForward(4, 0.5, pd.Timedelta("1h")).split(labels.drop(columns="exit_at")))


def test_statistics_by_what_labels_do_not_have_say_how_to_add_it(real, patterns):
    labels = label_symbols(Market({"BTCUSDT": real}, "5m"), {"BTCUSDT": patterns})
    with pytest.raises(
        LabelError,
        match="labels have no column regime: add what was known at each decision, "
        r"pd.merge_asof\(labels, table, on='time'\)",
    ):
        get_pattern_statistics(labels, "regime")
    moved = np.log(real["close"]).diff().rolling(288).std()
    regimes = pd.DataFrame(
        {"time": moved.index + STEP, "regime": np.where(moved > moved.expanding().median(), "wild", "calm")}
    )  # known at each close
    table = get_pattern_statistics(pd.merge_asof(labels, regimes, on="time"), ["regime", "kind"])
    assert table["events"].sum() == len(labels) and set(table.index.get_level_values("regime")) == {
        "calm",
        "wild",
    }
    assert not len(get_pattern_statistics(labels[:0]))


def test_nothing_to_label_is_said(real, patterns):
    with pytest.raises(LabelError, match="there are no candles: run the collect stage"):
        label_symbols(Market({}, "5m"), {})
    with pytest.raises(LabelError, match="ETHUSDT: there are no patterns of this symbol"):
        label_symbols(Market({"BTCUSDT": real, "ETHUSDT": real}, "5m"), {"BTCUSDT": patterns})


def test_no_patterns_are_no_labels(real, patterns):
    assert list(SMCPatternLabeler().label(real, "BTCUSDT", patterns=patterns[:0]).columns) == list(
        LABEL_COLUMNS
    )


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"entry": "market"}, "labels.entry"),
        ({"limit_expiry": 0}, "labels.limit_expiry"),
        ({"timeframes": ["15min"]}, "labels.timeframes: '15min' is none of"),
        ({"minimum_bars": 200}, "leave time for the target"),
        ({"scales": [""]}, "labels.scales"),
        ({"expiry": 3}, "labels.expiry is not a known key"),
    ],
)
def test_an_impossible_setting_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        LabelingConfig(**settings)
