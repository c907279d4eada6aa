"""Regimes on planted states, on real candles and on candles with nothing to tell apart.

What is known at a candle is known from its past alone, is the same live, and keeps its name.
"""

import numpy as np
import pandas as pd
import pytest

from smc_ml.candles import Market, validate_candles
from smc_ml.causality import assert_causal, poisoned
from smc_ml.data.sources.files import read_candle_file
from smc_ml.evaluation.by_regime import moves_by_regime, results_by_regime, state_at
from smc_ml.evaluation.intervals import mean_interval
from smc_ml.features.live.streaming import FeatureStream
from smc_ml.features.table import feature_table
from smc_ml.regimes import hidden_markov
from smc_ml.regimes.config import RegimeConfig, RegimeError
from smc_ml.regimes.hidden_markov import HMMRegimeDetector, StateModel
from smc_ml.regimes.inputs import regime_bars
from smc_ml.regimes.streaming import RegimeStream
from smc_ml.regimes.walk_forward import planned_fits, regime_tables, walk_forward_regimes

PROBABILITIES = ["regime_0", "regime_1", "regime_2"]


def switching(days: int, seed: int, factors=(1.0, 2.0, 4.0)) -> tuple[pd.DataFrame, np.ndarray]:
    "Five-minute candles whose volatility is one of a few, for two days on average; and which it is."
    random, rows = np.random.default_rng(seed), days * 288
    states = np.zeros(rows, int)
    for row in range(1, rows):
        stays = random.random() > 1 / 576
        states[row] = states[row - 1] if stays else random.integers(len(factors))
    close = 100 * np.exp((0.0005 * np.array(factors)[states] * random.normal(size=rows)).cumsum())
    opens = np.append(100, close[:-1])
    up, down = np.maximum(opens, close), np.minimum(opens, close)
    index = pd.date_range("2024-01-01", periods=rows, freq="5min", tz="UTC", name="open_time", unit="ns")
    table = {"open": opens, "high": up, "low": down, "close": close, "volume": 1.0}
    return pd.DataFrame(table, index=index), states


def test_planted_states_are_found_well_above_the_base_rate():
    "Each hour, by models that had seen none of it; the interval is by days."
    candles, truth = switching(100, seed=4)
    table = walk_forward_regimes(candles, RegimeConfig(volatility_bars=6)).table
    told = table["state"].notna().to_numpy()
    right = (table["state"][told].to_numpy(int) == truth[told]).astype(float)
    shares = np.bincount(truth[told]) / told.sum()
    gain = mean_interval(right - shares.max(), candles.index[told])
    print(f"right {right.mean():.1%}, base rate {shares.max():.1%}, gain {gain.value:.3f} {gain.bounds()}")
    assert right.mean() > 0.85 and gain.low > 0.25


def test_states_of_a_market_with_one_state_tell_nothing_of_what_comes():
    candles, _ = switching(80, seed=6, factors=(1.0,))
    market = Market({"A": candles}, "5m")
    moves = moves_by_regime(market, {"A": walk_forward_regimes(candles).table})
    sizes = moves.loc[["calm", "normal", "turbulent"]]
    print(sizes[["events", "size", "size_low", "size_high"]])
    assert sizes["size"].max() / sizes["size"].min() < 1.15


@pytest.fixture(scope="module")
def half(bitcoin) -> pd.DataFrame:
    return bitcoin.iloc[:36_000]


@pytest.fixture(scope="module")
def walked(half):
    return walk_forward_regimes(half, source="BTCUSDT")


def test_nothing_looks_ahead_on_real_candles(half, walked):
    def table(candles):
        return walk_forward_regimes(candles).table

    assert_causal(table, half, cuts=1, first=20_000)
    end = 30_000
    other = poisoned(half, end, "random prices", seed=1)
    pd.testing.assert_frame_equal(table(other).iloc[:end], walked.table.iloc[:end], check_exact=True)


def test_a_stream_is_the_batch_bit_for_bit_on_real_candles(half):
    some, config = half.iloc[:8000], RegimeConfig(minimum_bars=300, refit="week", iterations=10)
    batch = walk_forward_regimes(some, config)
    fed = RegimeStream(config, "5m").feed(some)
    pd.testing.assert_frame_equal(fed, batch.table[PROBABILITIES], check_exact=True)
    assert len(batch.detectors) >= 3


@pytest.mark.parametrize("base", ["15m", "1h"])
def test_a_stream_is_the_batch_on_other_bases(euro, hourly, base):
    candles = {"15m": euro.iloc[:9000], "1h": hourly.iloc[:3000]}[base]
    calendar, closed = ("forex", True) if base == "15m" else (None, False)
    config = RegimeConfig(minimum_bars=400, iterations=10, weekends_closed=closed)
    batch = walk_forward_regimes(candles, config, base, calendar=calendar)
    fed = RegimeStream(config, base, calendar=calendar).feed(candles)
    pd.testing.assert_frame_equal(fed, batch.table[PROBABILITIES], check_exact=True)
    assert batch.table["state"].notna().mean() > 0.3


def test_holes_begin_anew_and_nothing_is_said_across_them(market):
    file = market / "gappy_SOLUSDT_5m_binance_perp_2024-03.parquet"
    gappy = validate_candles(read_candle_file(file), "5m", "SOL", allow_gaps=True)
    config = RegimeConfig(states=2, volatility_bars=3, minimum_bars=60, refit="week", iterations=10)
    batch = walk_forward_regimes(gappy, config)
    fed = RegimeStream(config, "5m").feed(gappy)
    pd.testing.assert_frame_equal(fed, batch.table[PROBABILITIES[:2]], check_exact=True)
    bars = regime_bars(gappy, config)
    known, segment = bars.known >= 0, bars.segment[bars.known]
    starts = np.flatnonzero(np.diff(gappy.index.asi8) > 4 * 300e9) + 1
    assert len(starts) and not known[starts].any()
    assert (np.diff(segment[known]) >= 0).all()


def test_a_state_keeps_its_number_from_refit_to_refit(half, walked):
    "Ordered by volatility; two models that follow each other agree about the hours that both have seen."
    for detector in walked.detectors:
        mean, _ = detector.model_.moments()
        assert (np.diff(mean[:, list(detector.feature_names_in_).index("log_volatility")]) > 0).all()
    bars = regime_bars(half)
    agree = []
    for (before, after), fit in zip(
        zip(walked.detectors, walked.detectors[1:], strict=False),
        planned_fits(bars, RegimeConfig()),
        strict=False,
    ):
        seen = pd.DataFrame(bars.values[: fit.stop], columns=list(bars.names))
        agree.append((before.predict(seen) == after.predict(seen)).mean())
    print("agreement of models that follow each other", np.round(agree, 3))
    assert min(agree) > 0.6 and np.mean(agree) > 0.75


def test_a_state_has_its_number_however_the_fit_numbers_it(half, monkeypatch):
    bars = regime_bars(half.iloc[:9000])
    rows = pd.DataFrame(bars.values, columns=list(bars.names))
    usual, learn = HMMRegimeDetector(iterations=10).fit(rows), hidden_markov.learnt_model

    def turned(*given):
        model, order = learn(*given), [2, 0, 1]
        return StateModel(model.transition[np.ix_(order, order)], *(part[order] for part in model[1:]))

    monkeypatch.setattr(hidden_markov, "learnt_model", turned)
    other = HMMRegimeDetector(iterations=10).fit(rows)
    assert all((one == two).all() for one, two in zip(usual.model_, other.model_, strict=True))


def test_another_unit_of_price_gives_the_same_states(half, walked):
    scaled = half.assign(**{name: half[name] * 1024 for name in ("open", "high", "low", "close")})
    pd.testing.assert_frame_equal(
        walk_forward_regimes(scaled).table[PROBABILITIES], walked.table[PROBABILITIES], rtol=0, atol=1e-6
    )


def test_a_turbulent_state_is_followed_by_larger_moves_on_a_real_year(bitcoin):
    market = Market({"BTCUSDT": bitcoin}, "5m")
    walks = regime_tables(market)
    moves = moves_by_regime(market, {symbol: walk.table for symbol, walk in walks.items()})
    print(moves.round(2).to_string())
    sizes = moves.loc[["calm", "normal", "turbulent"]]
    assert (sizes["size_low"].to_numpy()[1:] > sizes["size_high"].to_numpy()[:-1]).all()
    assert moves.loc["unknown", "share"] < 0.1 and moves["share"].iloc[:-1].sum() == pytest.approx(1)


def test_results_are_told_apart_by_the_state_that_was_known(half, walked):
    random, regimes = np.random.default_rng(0), {"BTCUSDT": walked.table}
    times = half.index[np.sort(random.choice(len(half), 2000, replace=False))] + pd.Timedelta("5min")
    trades = pd.DataFrame({"symbol": "BTCUSDT", "time": times, "exit_at": times + pd.Timedelta("1h")})
    states = state_at(regimes, trades)
    known = walked.table["state"].loc[times - pd.Timedelta("5min")].fillna(-1).to_numpy(int)
    assert (states == known).all()
    between = trades.assign(time=times + pd.Timedelta("2min"))  # the candle that is open then is not known
    assert (state_at(regimes, between) == known).all()
    trades["realised_r"] = np.where(states == 2, 0.4, 0.0) + random.normal(size=len(trades))
    found = results_by_regime(trades, regimes)
    assert found["events"].iloc[:-1].sum() == len(trades) == found.loc["all", "events"]
    assert found.loc["turbulent", "mean_low"] > 0 and abs(found.loc["calm", "mean"]) < 0.2


def test_regimes_are_features_live_as_in_the_table(half, walked):
    rows, last = half.iloc[20_000:20_300], 200
    table = walked.table[PROBABILITIES].loc[rows.index]
    batch = feature_table(rows, wanted=["regimes"], others=table)
    pd.testing.assert_frame_equal(batch, table, check_exact=True)
    rules = {"wanted": ["regimes"], "with_patterns": False}
    stream = FeatureStream(rows.iloc[:last], others=table.iloc[:last], **rules)
    for time, candle, known in zip(
        rows.index[last:],
        rows.iloc[last:].to_dict("records"),
        table.iloc[last:].to_dict("records"),
        strict=True,
    ):
        newest = stream.update({"open_time": time} | candle, others=known)
        assert (newest == batch.loc[time].to_numpy()).all()


def test_candles_that_stand_still_have_regimes_or_say_why_not(half):
    still = half.iloc[:8000].assign(**dict.fromkeys(("open", "high", "low", "close"), 100.0))
    try:
        table = walk_forward_regimes(still).table
        assert np.isfinite(table.loc[table["state"].notna(), PROBABILITIES]).all(axis=None)
    except RegimeError as error:
        assert "states are found" in str(error)


def test_bad_input_is_refused_in_one_sentence(half, walked):
    with pytest.raises(
        RegimeError, match=r"BTC: 142 candles have all inputs of the regimes, the first model needs"
    ):
        walk_forward_regimes(half.iloc[:2000], source="BTC")
    broken = half.iloc[:9000].copy()
    broken.iloc[100, broken.columns.get_loc("close")] = np.nan
    with pytest.raises(ValueError, match="close is nan"):
        walk_forward_regimes(broken, source="BTC")
    with pytest.raises(RegimeError, match="3 rows are too short a history for 3 states: give at least 75"):
        HMMRegimeDetector().fit(np.zeros((3, 2)))
    with pytest.raises(RegimeError, match="state 5 is unknown, there are 3"):
        events = pd.DataFrame({"symbol": ["BTCUSDT"], "time": half.index[30_000:30_001]})
        state_at({"BTCUSDT": walked.table.assign(state=5)}, events)
