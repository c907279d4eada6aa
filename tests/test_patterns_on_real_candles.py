"""No pattern looks ahead, and the stream says what the batch says, on real candles of several timeframes:
with the future taken away or poisoned."""

import numpy as np
import pandas as pd
import pytest
from conftest import by_timeframe

from smc_ml.candles import TIMEFRAMES, Market, resample, validate_candles
from smc_ml.causality import LookAheadError, assert_blind_to_the_future, assert_causal_events
from smc_ml.data.sources.files import read_candle_file
from smc_ml.patterns.config import PatternConfig
from smc_ml.patterns.confluence import confluence, pattern_confluence
from smc_ml.patterns.detection import (
    PatternError,
    active_zones,
    detect_market,
    detect_patterns,
    detect_timeframes,
)
from smc_ml.patterns.names import KINDS, PERIODS
from smc_ml.patterns.streaming import PatternStream, update_table

FIVE_MINUTES = TIMEFRAMES["5m"]
FX = PatternConfig(weekends_closed=True, day_time_zone="America/New_York", day_start="17:00", periods=PERIODS)
OTHER = PatternConfig(
    break_by="wick",
    join_gaps=True,
    order_block_candle="extreme",
    sweep_within=3,
    minimum_gap_percent=0.02,
    gap_middle="beyond",
    periods=("asia_kill_zone", "day", "week", "month"),
)
MARKETS = {
    "bitcoin": ("5m", PatternConfig()),
    "ether": ("5m", OTHER),
    "euro": ("15m", FX),
    "hourly": ("1h", PatternConfig()),
}


@pytest.fixture(params=MARKETS)
def market_of(request) -> tuple[pd.DataFrame, str, PatternConfig]:
    "Candles, timeframe and settings of one market; the settings differ, so that every branch is walked."
    return request.getfixturevalue(request.param), *MARKETS[request.param]


def test_every_pattern_is_known_when_it_says(market_of):
    "The future taken away at 200 random closes, and at events of every kind, in four stretches of the year."
    candles, timeframe, config = market_of
    assert set(detect_patterns(candles, config, timeframe)["kind"]) == set(KINDS)
    size = min(len(candles) // 4, 16_000)
    for number, start in enumerate(np.linspace(0, len(candles) - size, 4).astype(int)):
        assert_causal_events(
            lambda c: detect_patterns(c, config, timeframe, validate=False),
            candles.iloc[start : start + size],
            TIMEFRAMES[timeframe],
            cuts=50,
            seed=number,
            first=500,
            each=1,
        )


@pytest.mark.slow
def test_every_pattern_is_known_when_it_says_in_the_whole_year(market_of):
    candles, timeframe, config = market_of
    assert_causal_events(
        lambda c: detect_patterns(c, config, timeframe, validate=False),
        candles,
        TIMEFRAMES[timeframe],
        cuts=200,
        first=500,
    )


def test_another_future_changes_nothing_that_was_known(market_of):
    "Random prices, NaN and a crash after 200 random closes, in ten stretches of the year."
    candles, timeframe, config = market_of
    for number, start in enumerate(np.linspace(0, len(candles) - 3000, 10).astype(int)):
        assert_blind_to_the_future(
            lambda c: detect_patterns(c, config, timeframe, validate=False),
            candles.iloc[start : start + 3000],
            TIMEFRAMES[timeframe],
            cuts=20,
            seed=number,
            first=300,
            ahead=300,
        )


@pytest.mark.slow
def test_another_future_changes_nothing_that_was_known_in_the_whole_year(market_of):
    candles, timeframe, config = market_of
    assert_blind_to_the_future(
        lambda c: detect_patterns(c, config, timeframe, validate=False),
        candles,
        TIMEFRAMES[timeframe],
        cuts=200,
        first=500,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_peek_of_one_candle_is_caught(bitcoin, kind):
    candles, config = bitcoin.iloc[:4500], PatternConfig(periods=("asia", "day", "week"))

    def peek(c):
        patterns = detect_patterns(c, config, validate=False)
        early = patterns["known_at"].where(patterns["kind"] != kind, patterns["known_at"] - FIVE_MINUTES)
        return patterns.assign(known_at=early).sort_values("known_at", kind="stable", ignore_index=True)

    with pytest.raises(LookAheadError):
        assert_causal_events(peek, candles, FIVE_MINUTES, cuts=20, first=300)


ENDLESS = (
    "break_of_structure",
    "change_of_character",
    "market_structure_shift",
    "liquidity_sweep",
    "liquidity_run",
)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ENDLESS])
def test_an_end_that_is_dated_one_candle_early_is_caught(bitcoin, kind):
    candles = bitcoin.iloc[:4500]

    def peek(c):
        patterns = detect_patterns(c, validate=False)
        return patterns.assign(
            ended_at=patterns["ended_at"].where(patterns["kind"] != kind, patterns["ended_at"] - FIVE_MINUTES)
        )

    with pytest.raises(LookAheadError):
        assert_causal_events(peek, candles, FIVE_MINUTES, cuts=150, first=300)


def test_the_stream_yields_the_table_of_the_batch_bit_for_bit(market_of):
    candles, timeframe, config = market_of
    stream = PatternStream(config, timeframe)
    pd.testing.assert_frame_equal(
        update_table(stream.feed(candles), config, timeframe),
        detect_patterns(candles, config, timeframe),
        check_exact=True,
    )


@pytest.mark.parametrize("middle", ["any", "directional", "beyond"])
def test_gaps_follow_the_rule_of_their_middle_candle(euro, middle):
    "On candles that jump over weekends and holidays, in one table and in a stream."
    candles = euro.iloc[:9000]
    config = PatternConfig(gap_middle=middle, minimum_gap=0.0, maximum_hole=1000, periods=[])
    patterns = detect_patterns(candles, config, "15m")
    streamed = update_table(PatternStream(config, "15m").feed(candles), config, "15m")
    pd.testing.assert_frame_equal(streamed, patterns, check_exact=True)
    gaps = patterns[patterns["kind"] == "fair_value_gap"]
    row = candles.index.get_indexer(gaps["formed_at"])
    first, middle_one, side = candles.iloc[row - 1], candles.iloc[row], gaps["direction"].to_numpy()
    body = side * (middle_one["close"] - middle_one["open"]).to_numpy()
    extreme = np.where(side > 0, first["high"], first["low"])
    beyond = side * (middle_one["close"].to_numpy() - extreme)
    assert (middle != "directional" or (body > 0).all()) and (middle != "beyond" or (beyond > 0).all())
    assert middle == "directional" or (body <= 0).any()
    assert middle == "beyond" or (beyond <= 0).any()
    successive = (np.diff(row) == 1) & (np.diff(side) == 0)
    low, high = gaps["bottom"].to_numpy(), gaps["top"].to_numpy()
    overlap = (np.minimum(high[1:], high[:-1]) > np.maximum(low[1:], low[:-1])) & successive
    assert successive.sum() > 100 and not overlap.any()


def test_a_close_exactly_at_the_level_is_a_sweep(euro):
    config = PatternConfig(periods=[])
    patterns = detect_patterns(euro, config, "15m")
    close = euro["close"].set_axis(euro.index + pd.Timedelta("15min"))
    taken = patterns[patterns["kind"].isin(["liquidity_sweep", "liquidity_run"])]
    at_the_level = taken[close[taken["known_at"]].to_numpy() == taken["level"].to_numpy()]
    assert set(at_the_level["kind"]) == {"liquidity_sweep"} and set(at_the_level["direction"]) == {-1, 1}
    levels = patterns[patterns["ended_how"].isin(["swept", "run"])]
    ended = levels["ended_how"][close[levels["ended_at"]].to_numpy() == levels["level"].to_numpy()]
    assert set(ended) == {"swept"} and len(ended) > 20


@pytest.mark.parametrize("timeframe", ["15m", "1h", "4h", "1d"])
def test_the_stream_yields_the_table_of_the_batch_on_higher_timeframes(bitcoin, timeframe):
    candles = resample(bitcoin, "5m", timeframe)
    stream = PatternStream(PatternConfig(), timeframe)
    pd.testing.assert_frame_equal(
        update_table(stream.feed(candles), PatternConfig(), timeframe),
        detect_patterns(candles, timeframe=timeframe),
        check_exact=True,
    )


def test_at_every_close_the_last_candles_alone_tell_what_is_new(ether):
    "Each close of two weeks in turn: what `PatternConfig.lookback` promises to fix."
    config = PatternConfig(
        kinds=(
            "swing_high",
            "swing_low",
            "break_of_structure",
            "change_of_character",
            "market_structure_shift",
            "order_block",
            "breaker_block",
            "fair_value_gap",
            "inverse_fair_value_gap",
            "liquidity_sweep",
            "liquidity_run",
            "equal_highs",
            "equal_lows",
        ),
        periods=(),
    )
    candles, lookback = ether.iloc[:4500], config.lookback
    fixed = ["kind", "direction", "scale", "formed_at", "known_at", "top", "bottom", "level", "strength"]

    def internal(patterns):
        return patterns.loc[patterns["scale"] != "swing", fixed]

    whole = {time: rows for time, rows in internal(detect_patterns(candles, config)).groupby("known_at")}
    for end in range(lookback, len(candles)):
        seen, closed = (
            internal(detect_patterns(candles.iloc[end - lookback : end], config, validate=False)),
            candles.index[end - 1] + FIVE_MINUTES,
        )
        new, expected = seen[seen["known_at"] == closed], whole.get(closed, seen.iloc[:0])
        assert new.to_numpy().tolist() == expected.to_numpy().tolist(), closed


def test_a_higher_candle_is_seen_only_when_it_has_closed(ether):
    candles = ether.iloc[:8000]
    assert_causal_events(
        lambda c: detect_timeframes(by_timeframe(c)), candles, FIVE_MINUTES, cuts=30, first=600, each=1
    )


def test_zones_in_force_are_those_a_live_trader_sees(ether):
    candles = ether.iloc[:6000]
    patterns = detect_timeframes(by_timeframe(candles))
    for end in range(1000, 6000, 250):
        at = candles.index[end - 1] + FIVE_MINUTES
        pd.testing.assert_frame_equal(
            active_zones(patterns, at), active_zones(detect_timeframes(by_timeframe(candles.iloc[:end])), at)
        )


def test_confluence_is_what_was_known_at_each_close(ether):
    candles = ether.iloc[:9000]
    patterns = detect_timeframes(by_timeframe(candles))
    whole, strengths = confluence(candles, patterns), pattern_confluence(patterns)
    assert whole["score"].between(-1, 1).all() and (whole["score"] > 0).any() and (whole["score"] < 0).any()
    assert (
        strengths[patterns["timeframe"] == "1d"].isna().all()
        and strengths[patterns["timeframe"] != "1d"].between(-1, 1).all()
    )
    for end in range(2000, 9000, 500):
        part = candles.iloc[:end]
        pd.testing.assert_frame_equal(
            confluence(part, detect_timeframes(by_timeframe(part))).iloc[-50:], whole.iloc[end - 50 : end]
        )


BASES = {"euro": ("15m", ("15m", "1h", "4h")), "hourly": ("1h", ("1h", "4h", "1d"))}


@pytest.fixture(params=BASES)
def base(request) -> tuple[pd.DataFrame, str, PatternConfig]:
    "Candles whose base is not five minutes, their timeframe, and settings that name it and its multiples."
    timeframe, timeframes = BASES[request.param]
    config = FX.model_copy(update={"timeframes": timeframes})
    return request.getfixturevalue(request.param).iloc[:8000], timeframe, config


def test_a_market_of_another_base_is_searched_on_its_multiples(base):
    candles, timeframe, config = base
    found = detect_market(Market({"A": candles, "B": candles.iloc[:3000]}, timeframe), config)
    assert list(found) == ["A", "B"] and found["A"]["known_at"].is_monotonic_increasing
    for name in config.timeframes:
        higher = candles if name == timeframe else resample(candles, timeframe, name)
        of_timeframe = found["A"][found["A"]["timeframe"] == name].reset_index(drop=True)
        pd.testing.assert_frame_equal(of_timeframe, detect_patterns(higher, config), check_exact=True)


def test_no_higher_candle_of_another_base_is_seen_early(base):
    candles, timeframe, config = base
    assert_causal_events(
        lambda c: detect_market(Market({"A": c}, timeframe), config)["A"],
        candles,
        TIMEFRAMES[timeframe],
        cuts=20,
        first=600,
        each=1,
    )


def test_confluence_of_another_base_is_what_was_known_at_each_close(base):
    candles, timeframe, config = base

    def scored(part):
        return confluence(part, detect_market(Market({"A": part}, timeframe), config)["A"], config=config)

    whole = scored(candles)
    assert set(whole) == {f"{what}_{name}" for what in ("trend", "zone") for name in config.timeframes} | {
        "score"
    }
    assert whole["score"].between(-1, 1).all() and (whole["score"] > 0).any() and (whole["score"] < 0).any()
    for end in range(2000, len(candles), 2000):
        pd.testing.assert_frame_equal(scored(candles.iloc[:end]).iloc[-50:], whole.iloc[end - 50 : end])


def test_the_stream_reads_the_timeframe_of_what_it_is_fed(base):
    candles, timeframe, config = base
    stream = PatternStream(config)
    updates = stream.feed(candles.iloc[:2000]) + stream.feed(candles.iloc[2000:])
    assert stream.timeframe == timeframe
    pd.testing.assert_frame_equal(
        update_table(updates, config, timeframe), detect_patterns(candles, config), check_exact=True
    )


def test_timeframes_that_cannot_be_made_of_the_base_are_refused(hourly):
    with pytest.raises(PatternError, match="patterns.timeframes: 5m is no multiple of 1h, the base"):
        detect_market(Market({"A": hourly}, "1h"))


def test_nothing_spans_a_long_hole(market):
    "Five holes of 500 candles, from bad paging of a downloader."
    candles = validate_candles(
        read_candle_file(market / "gappy_SOLUSDT_5m_binance_perp_2024-03.parquet"),
        "5m",
        "SOLUSDT",
        allow_gaps=True,
    )
    holes = np.flatnonzero(np.diff(candles.index.asi8) > 4 * FIVE_MINUTES.value)
    assert len(holes) == 5
    patterns = detect_patterns(candles)
    for border in candles.index[holes + 1]:
        assert not ((patterns["formed_at"] < border) & (patterns["known_at"] > border)).any()
        assert not ((patterns["known_at"] <= border) & (patterns["ended_at"] > border + FIVE_MINUTES)).any()
        assert (patterns["ended_how"][patterns["ended_at"] == border + FIVE_MINUTES] == "interrupted").all()
