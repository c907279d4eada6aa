"""Torch indicators on real candles: TA-Lib's values, nothing from the future, the same candle by candle."""

import numpy as np
import pandas as pd
import pytest
import talib
import torch
from safetensors.torch import load_file, save_file

from smc_ml.causality import LookAheadError, assert_causal, poisoned, random_cuts
from smc_ml.indicators.inputs import IndicatorError
from smc_ml.indicators.momentum import CCIIndicator, RSIIndicator
from smc_ml.indicators.trailing import ChandelierExitIndicator, SuperTrendIndicator
from smc_ml.indicators.trend import ADXIndicator, WaveTrendIndicator

ALL = [
    RSIIndicator,
    CCIIndicator,
    ADXIndicator,
    WaveTrendIndicator,
    ChandelierExitIndicator,
    SuperTrendIndicator,
]
SIGNALS = {"buy_signals", "sell_signals"}
each_indicator = pytest.mark.parametrize("indicator", ALL, ids=lambda kind: kind.__name__)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def table(indicator, candles) -> pd.DataFrame:
    found = indicator.calculate(candles)
    return pd.DataFrame({name: values.numpy() for name, values in found.items()}, candles.index)


def prices(candles) -> list[np.ndarray]:
    return [candles[name].to_numpy() for name in ("high", "low", "close")]


def of_talib(high, low, close, period: int) -> dict[type, dict[str, np.ndarray]]:
    "What TA-Lib says, by indicator and output."
    line, direction = talib.SUPERTREND(high, low, close, period, 2.0)
    index = {
        "adx": talib.ADX(high, low, close, period),
        "plus_di": talib.PLUS_DI(high, low, close, period),
        "minus_di": talib.MINUS_DI(high, low, close, period),
    }
    directed = np.where(np.isnan(line), np.nan, direction)
    return {
        RSIIndicator: {"rsi": talib.RSI(close, period)},
        CCIIndicator: {"cci": talib.CCI(high, low, close, period)},
        ADXIndicator: index,
        SuperTrendIndicator: {"supertrend": line, "direction": directed},
    }


def settings(kind: type, period: int) -> dict:
    return {"period": period} | ({"multiplier": 2.0} if kind is SuperTrendIndicator else {})


@pytest.mark.parametrize("period", [2, 5, 14, 50, 200])
def test_a_year_of_two_symbols_has_the_values_of_talib(bitcoin, ether, period):
    market = {"BTCUSDT": bitcoin, "ETHUSDT": ether}
    expected = [of_talib(*prices(candles), period) for candles in market.values()]
    for kind in expected[0]:
        found = kind(**settings(kind, period)).calculate(market)
        for name in expected[0][kind]:
            stacked = np.stack([each[kind][name] for each in expected])
            np.testing.assert_allclose(found[name].numpy(), stacked, rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e6])
def test_prices_of_any_size_have_the_values_of_talib(bitcoin, scale):
    candles = bitcoin.iloc[:3000] * (scale / 20_000)
    for kind, outputs in of_talib(*prices(candles), 14).items():
        found = kind(**settings(kind, 14)).calculate(candles)
        for name, values in outputs.items():
            unit = scale if name == "supertrend" else 1.0
            np.testing.assert_allclose(found[name].numpy(), values, rtol=0, atol=1e-6 * unit, err_msg=name)


def stretches(candles) -> dict[str, pd.DataFrame]:
    "Markets that stand still, in whole or in part, or move by one tick."
    still, ticks, seen = candles.iloc[:1500].copy(), candles.iloc[:1500].copy(), candles.iloc[:4500].copy()
    names = ["open", "high", "low", "close"]
    still[names] = 27_123.4
    seen.loc[seen.index[600:3800], names] = seen["close"].iloc[599]
    grid = np.random.default_rng(0).integers(0, 2, len(ticks)) * 0.1 + 27_123.4
    ticks[names] = np.column_stack([grid] * 4)
    return {"flat": still, "flat for a while": seen, "one tick": ticks}


@each_indicator
@pytest.mark.parametrize("kind", ["flat", "flat for a while", "one tick"])
def test_values_are_defined_where_nothing_moves(bitcoin, indicator, kind):
    candles = stretches(bitcoin)[kind]
    found = table(indicator(), candles)
    warm_up = indicator().warm_up
    assert np.isfinite(found.iloc[warm_up:].astype(float)).all(axis=None)
    assert kind != "flat" or not found[list(SIGNALS)].any(axis=None)
    if indicator in (RSIIndicator, ADXIndicator, SuperTrendIndicator):
        for name, values in of_talib(*prices(candles), 14)[indicator].items():
            values_here = indicator(**settings(indicator, 14)).calculate(candles)[name]
            np.testing.assert_allclose(values_here.numpy(), values, rtol=0, atol=1e-6, err_msg=name)


def test_a_market_that_comes_to_rest_is_not_called_a_wave(bitcoin):
    found = table(WaveTrendIndicator(), stretches(bitcoin)["flat for a while"]).iloc[2600:3800]
    assert found[["wt1", "wt2"]].abs().max(axis=None) < 1 and not found[list(SIGNALS)].any(axis=None)


@each_indicator
def test_nothing_comes_from_the_future(bitcoin, indicator):
    candles = bitcoin.iloc[20_000:22_500]
    assert_causal(lambda candles: table(indicator(), candles), candles, cuts=200, first=60)


@each_indicator
def test_another_future_changes_nothing(bitcoin, indicator):
    candles = bitcoin.iloc[30_000:32_000]
    whole = table(indicator(), candles)
    for end in random_cuts(len(candles), 20, seed=3, first=100):
        for poison in ("random prices", "a crash"):
            other = table(indicator(), poisoned(candles, end, poison, seed=int(end)))
            pd.testing.assert_frame_equal(other.iloc[:end], whole.iloc[:end], check_exact=True)


@each_indicator
def test_a_leak_of_one_candle_is_caught_in_every_output(bitcoin, indicator):
    def peek(candles, name):
        return table(indicator(), candles)[[name]].astype(float).shift(-1)

    for name in table(indicator(), bitcoin.iloc[:100]):
        with pytest.raises(LookAheadError):
            assert_causal(lambda candles, name=name: peek(candles, name), bitcoin.iloc[:3000], 200, first=60)


@each_indicator
@pytest.mark.parametrize("start", [0, 1, 40, 30_000, 83_000])
def test_candle_by_candle_the_values_are_those_of_the_batch(bitcoin, ether, indicator, start):
    "500 candles of two symbols behind a history of `start`; the first start has none."
    rows = slice(start, start + 500)
    market = {"BTCUSDT": bitcoin, "ETHUSDT": ether}
    whole = indicator().calculate({symbol: candles.iloc[: rows.stop] for symbol, candles in market.items()})
    stream = indicator()
    if start:
        stream.start({symbol: candles.iloc[:start] for symbol, candles in market.items()})
    columns = {
        name: np.stack([candles[name].to_numpy()[rows] for candles in market.values()])
        for name in stream.columns
    }
    live = [stream.update({name: each[:, row] for name, each in columns.items()}) for row in range(500)]
    for name, values in whole.items():
        streamed, batch = torch.stack([each[name] for each in live], -1), values[:, rows]
        if name in SIGNALS:
            assert streamed.equal(batch), name
        else:
            size = batch.abs().nanmedian().item()
            allowed = 1e-9 * batch.abs().nan_to_num().clamp(min=size)
            assert streamed.isnan().equal(batch.isnan()), name
            assert ((streamed - batch).abs().nan_to_num() <= allowed).all(), name


@each_indicator
def test_a_stream_goes_on_from_a_file(bitcoin, tmp_path, indicator):
    stream, again = indicator(), indicator()
    stream.start(bitcoin.iloc[:500])
    save_file(stream.state, tmp_path / "state.safetensors")
    again.state = load_file(tmp_path / "state.safetensors")
    for _, candle in bitcoin.iloc[500:520].iterrows():
        one, other = stream.update(candle), again.update(candle)
        assert all(one[name].equal(other[name]) for name in one)
    with pytest.raises(IndicatorError, match="is not after"):
        again.update(bitcoin.iloc[519])


@each_indicator
def test_axes_and_types_do_not_change_the_numbers(bitcoin, indicator):
    candles = bitcoin.iloc[:400]
    alone = indicator().calculate(candles)
    arrays = {name: np.broadcast_to(candles[name], (2, 3, 400)) for name in indicator().columns}
    many = indicator().calculate(arrays)
    single = indicator(dtype=torch.float32).calculate(candles)
    tensors = (
        indicator().float().calculate({name: torch.from_numpy(np.array(candles[name])) for name in arrays})
    )
    for name, values in alone.items():
        assert many[name].shape == (2, 3, 400) and many[name][1, 2].nan_to_num().equal(values.nan_to_num())
        expected = values if name in SIGNALS else values.float()
        assert values.dtype == (torch.bool if name in SIGNALS else torch.float64)
        assert single[name].dtype == tensors[name].dtype == expected.dtype
        assert single[name].nan_to_num().equal(expected.nan_to_num())
        assert tensors[name].nan_to_num().equal(expected.nan_to_num())


@each_indicator
def test_the_warm_up_is_missing_and_nothing_else(bitcoin, indicator):
    found, warm_up = table(indicator(), bitcoin.iloc[:400]), indicator().warm_up
    values = found.drop(columns=list(SIGNALS))
    assert values.iloc[:warm_up].isna().any(axis=1).all() and values.iloc[warm_up:].notna().all(axis=None)
    assert not found[list(SIGNALS)].iloc[:warm_up].any(axis=None)
    short = table(indicator(), bitcoin.iloc[:3])
    assert short.drop(columns=list(SIGNALS)).isna().all(axis=None)


@each_indicator
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_candle_that_is_not_finite_is_refused_by_name(bitcoin, ether, indicator, bad):
    broken = ether.iloc[:300].copy()
    broken.iloc[123, broken.columns.get_loc("close")] = bad
    market = {"BTCUSDT": bitcoin.iloc[:300], "ETHUSDT": broken}
    told = rf"ETHUSDT: column close is {bad} at {broken.index[123]}".replace("+", r"\+")
    with pytest.raises(IndicatorError, match=told):
        indicator().calculate(market)
    stream = indicator()
    stream.start(ether.iloc[:123])
    with pytest.raises(IndicatorError, match="ETHUSDT: column close"):
        stream.update(broken.iloc[123], source="ETHUSDT")
    assert stream.update(ether.iloc[123]).keys() >= SIGNALS


@each_indicator
def test_gradients_reach_the_prices(bitcoin, indicator):
    columns = {
        name: torch.from_numpy(np.array(bitcoin[name].iloc[:200])).requires_grad_()
        for name in indicator().columns
    }
    found = indicator().calculate(columns)
    sum(values.nan_to_num().sum() for name, values in found.items() if values.requires_grad).backward()
    for column in columns.values():
        assert torch.isfinite(column.grad).all() and column.grad.any()
