"""Candles that hypothesis makes up (ties, doji, price gaps, flat stretches, huge bars, holes):
nothing looks ahead, batch equals stream, no pattern is impossible."""

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smc_ml.candles import TIMEFRAMES
from smc_ml.causality import assert_blind_to_the_future, assert_causal_events
from smc_ml.patterns.config import PatternConfig
from smc_ml.patterns.detection import detect_patterns
from smc_ml.patterns.names import KINDS
from smc_ml.patterns.streaming import PatternStream, update_table

FIVE_MINUTES = TIMEFRAMES["5m"]
SMALL = {
    "atr_window": 3,
    "pivot_length": 1,
    "structure_age": 12,
    "swing_age": 20,
    "zigzag_atr": 1.0,
    "zone_age": 15,
    "minimum_displacement": 0.2,
    "minimum_gap": 0.0,
    "equal_tolerance": 0.3,
    "level_touches": 2,
    "profile_window": 8,
    "profile_every": 4,
    "profile_bins": 6,
    "periods": ("new_york_kill_zone", "london_close_kill_zone", "day"),
}

step = st.one_of(
    st.just((0, 0, 0)),
    st.just((0, 1, 1)),
    st.tuples(st.integers(-3, 3), st.integers(0, 2), st.integers(0, 2)),
    st.tuples(st.integers(-40, 40), st.integers(0, 30), st.integers(0, 30)),
)
candle = st.tuples(
    step, st.integers(-2, 2), st.integers(0, 3), st.sampled_from([1] * 37 + [2, 3, 60])
)  # body and wicks, price gap, volume, candles to the next one


@st.composite
def odd_candles(draw) -> pd.DataFrame:
    rows, price, time, out = (
        draw(st.lists(candle, min_size=60, max_size=160)),
        200,
        pd.Timestamp("2024-03-07 14:30", tz="UTC"),
        [],
    )
    for (body, upper, lower), jump, volume, apart in rows:
        opened = max(price + jump, 60)
        closed = max(opened + body, 60)
        out.append(
            (time, opened, max(opened, closed) + upper, min(opened, closed) - min(lower, 50), closed, volume)
        )
        price, time = closed, time + apart * FIVE_MINUTES
    table = (
        pd.DataFrame(out, columns=["open_time", "open", "high", "low", "close", "volume"])
        .set_index("open_time")
        .astype(float)
    )
    return table.set_axis(table.index.as_unit("ns"))


configs = st.builds(
    lambda **chosen: PatternConfig(**SMALL | chosen),
    break_by=st.sampled_from(["close", "wick"]),
    join_gaps=st.booleans(),
    sweep_within=st.integers(1, 3),
    order_block_candle=st.sampled_from(["opposite", "extreme"]),
    weekends_closed=st.booleans(),
)
thorough = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@given(odd_candles(), configs)
@thorough
def test_nothing_looks_ahead(candles, config):
    def detect(c):
        return detect_patterns(c, config, "5m", validate=False)  # the tests below do

    assert_causal_events(detect, candles, FIVE_MINUTES, cuts=8, each=1)
    assert_blind_to_the_future(detect, candles, FIVE_MINUTES, cuts=3, ahead=30)


@given(odd_candles(), configs)
@thorough
def test_batch_equals_stream(candles, config):
    pd.testing.assert_frame_equal(
        update_table(PatternStream(config, "5m").feed(candles), config, "5m"),
        detect_patterns(candles, config, "5m"),
        check_exact=True,
    )


@given(odd_candles(), configs)
@thorough
def test_no_pattern_is_impossible(candles, config):
    patterns = detect_patterns(candles, config, "5m")
    assert set(patterns["kind"]) <= set(KINDS) and patterns["known_at"].is_monotonic_increasing
    assert (patterns["formed_at"] < patterns["known_at"]).all() and (
        patterns["bottom"] <= patterns["top"]
    ).all()
    assert np.isfinite(patterns[["top", "bottom", "level", "strength", "volume"]]).all(axis=None)
    assert ((patterns["bottom"] <= patterns["level"]) & (patterns["level"] <= patterns["top"])).all()
    for name in ("touched_at", "mitigated_at", "ended_at"):
        assert not (patterns[name] <= patterns["known_at"]).any()
    assert (
        not (patterns["mitigated_at"] < patterns["touched_at"]).any()
        and (patterns["ended_at"].isna() == (patterns["ended_how"] == "")).all()
    )


def test_the_odd_candles_make_every_kind_of_pattern():
    "Else the tests above would prove little."
    seen = set()

    @given(odd_candles())
    @thorough
    def collect(candles):
        seen.update(detect_patterns(candles, PatternConfig(**SMALL), "5m")["kind"])

    collect()
    assert seen == set(KINDS)
