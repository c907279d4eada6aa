"""The stream of features says what the table says: across holes and weekends, after copies and restarts."""

import copy
import time

import numpy as np
import pandas as pd
import pytest

from smc_ml.candles import TIMEFRAMES, Market, validate_candles
from smc_ml.data.sources.files import read_candle_file
from smc_ml.features.cross_section import beside
from smc_ml.features.live.patterns import updates_by_candle
from smc_ml.features.live.saved_streams import restore_feature_stream, save_feature_stream
from smc_ml.features.live.streaming import FeatureStream
from smc_ml.features.table import feature_table
from smc_ml.patterns.config import PatternConfig
from smc_ml.patterns.detection import detect_market
from smc_ml.patterns.streaming import PatternStream

FOREX = PatternConfig(timeframes=("15m", "1h", "4h", "1d"), weekends_closed=True)


class Case:
    "Candles of a market's first symbol, what pattern streams say of them, and the table of their features."

    def __init__(self, market, config=PatternConfig()):
        self.market, self.config, (self.symbol, *_) = market, config, market
        self.candles, self.step = market[self.symbol], TIMEFRAMES[market.timeframe].value
        self.closes = self.candles.index.asi8 + self.step
        self.said = [
            update
            for name in config.timeframes
            for update in PatternStream(config, name).feed(market.at(name)[self.symbol])
        ]
        self.others = beside(market).get(self.symbol)
        facts = {"source": self.symbol, "calendar": market.calendar, "others": self.others}
        self.given = {"pattern_config": config, "timeframe": market.timeframe} | facts
        own = Market({self.symbol: self.candles}, market.timeframe, market.calendar)
        self.table = feature_table(self.candles, detect_market(own, config)[self.symbol], **self.given)
        self.scale = self.table.abs().median().fillna(0.0).to_numpy()

    def opened(self, row, rows=None):
        "A stream that goes on from the candles before a row."
        first = 0 if rows is None else max(row - rows, 0)
        kept = slice(first, row)
        before = self.closes[row - 1] if row else 0
        said = [u for u in self.said if u.closed_at <= before]
        others = {} if self.others is None else {"others": self.others[kept]}
        return FeatureStream(self.candles[kept], said, **self.given | others)

    def fed(self, stream, row, rows):
        "The rows that a stream gives for the candles from a row on."
        before = self.closes[row - 1] if row else 0
        part = slice(row, row + rows)
        said = [u for u in self.said if before < u.closed_at <= self.closes[part][-1]]
        return stream.feed(self.candles[part], said, None if self.others is None else self.others[part])

    def check(self, found, row):
        "Whether rows are those of the table: missing where they are, else within 1e-9."
        expected = self.table.iloc[row : row + len(found)]
        assert list(found) == list(expected)
        pd.testing.assert_index_equal(found.index, expected.index)
        one, other = found.to_numpy(), expected.to_numpy()
        far = ~(np.abs(one - other) <= 1e-9 * np.maximum(np.abs(other), self.scale))
        far &= ~(np.isnan(one) & np.isnan(other))
        wrong = [name for name, bad in zip(found, far.any(axis=0), strict=True) if bad]
        assert not wrong, f"{wrong} at {found.index[far.any(axis=1)][0]}"
        size = np.maximum(np.abs(other), self.scale)
        apart = np.divide(np.abs(one - other), size, out=np.zeros(one.shape), where=size > 0)
        return float(np.nanmax(apart))


@pytest.fixture(scope="module")
def five_minutes(bitcoin, ether):
    return Case(Market({"BTCUSDT": bitcoin[:16_000], "ETHUSDT": ether[:16_000]}, "5m"))


@pytest.fixture(scope="module")
def gappy(market):
    candles = read_candle_file(market / "gappy_SOLUSDT_5m_binance_perp_2024-03.parquet")
    return Case(Market({"SOLUSDT": validate_candles(candles, "5m", "SOLUSDT", allow_gaps=True)}, "5m"))


@pytest.fixture(scope="module")
def quarters(euro):
    return Case(Market({"EURUSD": euro[:9_000]}, "15m", "forex"), FOREX)


@pytest.mark.parametrize("row", [0, 7_900, 15_700])
def test_rows_of_the_stream_are_those_of_the_table(five_minutes, row):
    stream = five_minutes.opened(row)
    five_minutes.check(five_minutes.fed(stream, row, 150), row)
    assert stream.by_batch == ()


def test_what_is_not_written_down_needs_patterns_or_days_that_may_be_missing(five_minutes):
    stream = five_minutes.opened(0)
    assert len(stream.names) == 256
    assert stream.by_call == (
        "order_block_proximity",
        "fvg_size",
        "choch_strength",
        "break_of_structure_momentum",
        "liquidity_sweep_strength",
        "daily_trend_strength",
    )


def test_a_stream_opens_from_the_lookback_alone(five_minutes):
    stream = five_minutes.opened(15_000)
    short = five_minutes.opened(15_000, stream.lookback + 1)
    five_minutes.check(five_minutes.fed(short, 15_000, 100), 15_000)


def test_holes_begin_anew_as_in_the_table(gappy):
    holes = np.flatnonzero(np.diff(gappy.candles.index.asi8) > gappy.step)
    assert len(holes) > 3
    for row in {max(int(hole) - 20, 0) for hole in holes[:3]}:
        gappy.check(gappy.fed(gappy.opened(row), row, 80), row)


def test_weekends_and_days_of_new_york(quarters):
    friday = np.flatnonzero(np.diff(quarters.candles.index.asi8) > pd.Timedelta("1D").value)[-1]
    quarters.check(quarters.fed(quarters.opened(friday - 40), friday - 40, 150), friday - 40)


def test_copies_and_restored_streams_go_on_bit_for_bit(gappy, five_minutes, tmp_path):
    hole = int(np.flatnonzero(np.diff(gappy.candles.index.asi8) > 4 * gappy.step)[0])
    for case, row in ((gappy, 40), (gappy, hole - 10), (gappy, 5_000), (five_minutes, 9_003)):
        stream = case.opened(row)
        case.fed(stream, row, 5)
        save_feature_stream(stream, tmp_path / "stream")
        others = [stream.copy(), copy.deepcopy(stream), restore_feature_stream(tmp_path / "stream")]
        gone_on = case.fed(stream, row + 5, 60)
        for other in others:
            pd.testing.assert_frame_equal(case.fed(other, row + 5, 60), gone_on, check_exact=True)


def replay(case, stream, row, rows):
    "Milliseconds that each update took, of this process alone."
    names, part = list(case.candles), slice(row, row + rows)
    said = updates_by_candle([u for u in case.said if u.closed_at > case.closes[row - 1]], case.closes[part])
    beside = [None] * rows if case.others is None else case.others[part].to_dict("records")
    values = case.candles[part].to_numpy().tolist()
    took = []
    for opened, own, given, others in zip(case.candles.index[part], values, said, beside, strict=True):
        candle = {"open_time": opened} | dict(zip(names, own, strict=True))
        begun = time.thread_time()
        stream.update(candle, given, others)
        took.append(1e3 * (time.thread_time() - begun))
    return np.array(took)


@pytest.mark.slow
def test_two_thousand_rows_from_five_points_of_the_year(bitcoin, ether, gappy, quarters):
    year = Case(Market({"BTCUSDT": bitcoin, "ETHUSDT": ether}, "5m"))
    assert year.table.shape[1] == 256
    points = (100, 20_000, 45_000, 70_000, 103_000)
    apart = [year.check(year.fed(year.opened(row), row, 2_000), row) for row in points]
    apart += [case.check(case.fed(case.opened(0), 0, len(case.candles)), 0) for case in (gappy, quarters)]
    print("largest differences:", *(f"{largest:.1e}" for largest in apart))
    took = replay(year, year.opened(60_000), 60_000, 2_000)
    print(
        f"{year.table.shape[1]} features: median {np.median(took):.2f}, p99 {np.quantile(took, 0.99):.2f} ms"
    )
    assert np.median(took) < 1.5
