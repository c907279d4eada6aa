"""What candles say of the spread, beside the quoted spread of a real book: eight minutes of a liquid coin.

The quoted spread is one tick most of the time. On candles of a second the estimates have its order of
magnitude, and their ranks say nothing about when it is wider: a feature of theirs is no price of a trade.
"""

import numpy as np
import pandas as pd
import pytest

from smc_ml.features.config import FeatureConfig
from smc_ml.features.inputs import FeatureInputs
from smc_ml.features.microstructure.spreads import MICROSTRUCTURE
from smc_ml.patterns.config import PatternConfig

ESTIMATORS = ("roll_spread_48", "corwin_schultz_spread_48", "abdi_ranaldo_spread_48")


@pytest.fixture(scope="module")
def beside_the_quotes(market) -> pd.DataFrame:
    "The estimates over 48 seconds of candles of one second, and the mean quoted spread of the same ones."
    path = market / "l2"
    trades = pd.read_parquet(next(path.glob("*trades.parquet"))).set_index("ts")
    book = pd.read_parquet(next(path.glob("*book10_1s.parquet"))).set_index("ts")
    candles = trades["price"].resample("1s").ohlc().ffill()
    candles["volume"] = trades["qty"].resample("1s").sum()
    inputs = FeatureInputs(FeatureConfig(), PatternConfig(), "5m", candles)
    table = {name: MICROSTRUCTURE.features[name].compute(inputs)[name] for name in ESTIMATORS}
    quoted = 1e4 * np.log(book["ask_px_1"] / book["bid_px_1"])
    quoted = quoted.resample("1s").mean().ffill().rolling(48).mean()
    return pd.DataFrame(table, candles.index).assign(quoted=quoted).dropna()


def test_spreads_of_candles_have_the_size_of_the_quoted_one_and_not_its_ups_and_downs(beside_the_quotes):
    ranks = beside_the_quotes.corr("spearman")["quoted"][list(ESTIMATORS)]
    means = beside_the_quotes.mean()
    print(f"rank correlation {ranks.round(2).to_dict()}, means {means.round(3).to_dict()} basis points")
    assert len(beside_the_quotes) > 400
    assert (means[list(ESTIMATORS)] / means["quoted"]).between(0.5, 5).all()
    assert (ranks.abs() < 0.3).all()
