"""Where nothing moves or nothing is traded, every pattern, feature and label has a defined value."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smc_ml.candles import Market
from smc_ml.features.config import FeatureConfig
from smc_ml.features.inputs import FeatureError
from smc_ml.features.table import declared_features, longest_lookback, smc_features
from smc_ml.labels.config import HorizonConfig, LabelingConfig
from smc_ml.labels.horizons import horizon_targets
from smc_ml.labels.outcomes import label_patterns
from smc_ml.patterns.config import PatternConfig
from smc_ml.patterns.detection import PRICE_COLUMNS, detect_market
from smc_ml.patterns.streaming import PatternStream, update_table
from smc_ml.simulation.market import random_walk

SHORT = PatternConfig(structure_age=20, swing_age=60, zone_age=40, timeframes=("5m", "15m", "1h", "4h"))
SMALL = FeatureConfig(families=["smc"], daily_bars=2, profile_bars=60, range_bars=40)
LABELS = LabelingConfig(timeframes=["5m", "15m"], minimum_risk=1e-6, stop_buffer=0.0, maximum_bars=40)
TICK, LENGTH = 0.01, 4000
WALK = random_walk(LENGTH, seed=11).round(2)


def stilled(candles: pd.DataFrame, start: int, stop: int, shape: str, traded: bool) -> pd.DataFrame:
    "The candles with a stretch in which the price stands still, or moves by a tick now and then."
    out, rows = candles.copy(), np.arange(stop - start)
    price = candles["close"].iloc[start - 1] if start else 100.0
    jumps = {"constant": 0 * rows, "one tick": rows > len(rows) // 2, "alternating": rows % 2}[shape]
    closes = price + TICK * jumps.astype(float)
    opens = closes if shape == "one tick" else np.append(price, closes[:-1])
    values = [opens, np.maximum(opens, closes), np.minimum(opens, closes), closes]
    for name, column in zip(("open", "high", "low", "close"), values, strict=True):
        out.iloc[start:stop, out.columns.get_loc(name)] = column
    if not traded:
        out.iloc[start:stop, out.columns.get_loc("volume")] = 0.0
    return out


def consider(candles: pd.DataFrame) -> pd.DataFrame:
    "Patterns, labels and targets are finite where they are known; the features, checked."
    patterns = detect_market(Market({"QUIET": candles}, "5m"), SHORT)["QUIET"]
    assert np.isfinite(patterns[list(PRICE_COLUMNS)].to_numpy()).all()
    features = smc_features(candles, patterns, SMALL, SHORT)
    exact = features.iloc[longest_lookback(SMALL, SHORT) - 1 :]
    assert np.isfinite(exact.to_numpy()).all() and not np.isinf(features.to_numpy()).any()
    for entry in ("next_open", "limit_edge", "limit_middle"):
        config = LABELS.model_copy(update={"entry": entry})
        labels = label_patterns(candles, patterns, "QUIET", config, pattern_config=SHORT)
        trades = labels.loc[labels["filled"], ["gross_r", "cost_r", "realised_r", "mfe_r", "mae_r"]]
        assert np.isfinite(trades.to_numpy()).all()
        assert (labels.loc[labels["filled"], "entry"] != labels.loc[labels["filled"], "stop"]).all()
    targets = horizon_targets(candles, HorizonConfig(horizons=["15m", "1h"]))
    assert not np.isinf(targets.filter(regex="return|drawdown|rally").to_numpy(float)).any()
    return features


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("traded", [True, False])
@pytest.mark.parametrize("shape", ["constant", "one tick", "alternating"])
@pytest.mark.parametrize("length", [30, 600, LENGTH - 1])
def test_a_quiet_stretch_has_defined_features(shape, traded, length):
    stop = 3900 if length < LENGTH - 1 else LENGTH
    features = consider(stilled(WALK, stop - length, stop, shape, traded)).iloc[stop - 1]
    if shape == "constant":
        still = {"price_momentum": 0, "fvg_size": 0, "order_book_imbalance": 0, "bid_ask_spread": 0}
        assert features[list(still)].to_dict() == still
        assert abs(features["order_block_proximity"]) in (0, 1)
    if shape == "constant" and length >= 600:
        flat = {
            "volatility_ratio": 1,
            "risk_reward_ratio": 0,
            "stop_loss_distance": 0,
            "position_size_optimal": SMALL.maximum_leverage,
        }
        assert features[list(flat)].to_dict() == flat
        assert traded or features["volume_profile"] == 0


def test_a_market_that_never_moved_has_no_patterns_and_neutral_features():
    flat = stilled(WALK, 0, LENGTH, "constant", False)
    features = consider(flat).iloc[-1]
    neutral = {declared.name: 0.0 for declared in declared_features(SMALL)}
    assert features.to_dict() == neutral | {"volatility_ratio": 1.0, "position_size_optimal": 1.0}


def test_the_stream_sees_a_quiet_stretch_as_the_batch_does():
    candles = stilled(WALK, 1000, 1100, "constant", False).iloc[:1500]
    stream = PatternStream(SHORT, "5m")
    table = update_table(stream.feed(candles), SHORT, "5m")
    config = SHORT.model_copy(update={"timeframes": ("5m",)})
    pd.testing.assert_frame_equal(table, detect_market(Market({"A": candles}, "5m"), config)["A"])


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    stretches=st.lists(
        st.tuples(
            st.integers(1, 3000),
            st.integers(1, 900),
            st.sampled_from(["constant", "one tick", "alternating"]),
            st.booleans(),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_any_quiet_stretches(stretches):
    candles = WALK
    for start, length, shape, traded in stretches:
        candles = stilled(candles, start, start + length, shape, traded)
    consider(candles)


def test_patterns_of_other_timeframes_are_named():
    found = detect_market(Market({"A": WALK}, "5m"), SHORT)["A"]
    config = SHORT.model_copy(update={"timeframes": ("15m",)})
    alone = detect_market(Market({"A": WALK}, "5m"), config)["A"]
    with pytest.raises(FeatureError, match="not one pattern of 5m, 1h, 4h on candles .* on 5m, 1h, 4h too"):
        smc_features(WALK, alone, SMALL, SHORT)
    with pytest.raises(FeatureError, match="not one pattern of 4h on"):
        smc_features(WALK, found[found["timeframe"] != "4h"], SMALL, SHORT)
