"""Where the real market data lie, and what every test shares."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from smc_ml.candles import resample, validate_candles
from smc_ml.data.sources.files import read_candle_file

ROOT = Path(__file__).resolve().parents[1]
MARKET = Path(os.environ.get("SMC_ML_MARKET", ROOT.parent / "shared" / "market"))
BTC, ETH = (MARKET / f"{symbol}USDT_5m_binance_perp_2023.parquet" for symbol in ("BTC", "ETH"))


def pytest_configure(config):
    if os.environ.get("CI") == "true" and not MARKET.is_dir():
        pytest.exit(f"the real market data are not at {MARKET}: set SMC_ML_MARKET", returncode=1)


LONGEST = ["test_pipeline_end_to_end.py", "test_notebooks.py"]


def pytest_collection_modifyitems(items):
    "The longest files first, so that two workers end together."
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def market() -> Path:
    if not MARKET.is_dir():
        pytest.skip(f"the real market data are not at {MARKET} (set SMC_ML_MARKET)")
    return MARKET


def real_candles(path: Path) -> pd.DataFrame:
    return validate_candles(read_candle_file(path), "5m", str(path))


@pytest.fixture(scope="session")
def bitcoin(market) -> pd.DataFrame:
    "A year of real five-minute candles."
    return real_candles(BTC)


@pytest.fixture(scope="session")
def ether(market) -> pd.DataFrame:
    return real_candles(ETH)


@pytest.fixture(scope="session")
def euro(market) -> pd.DataFrame:
    "A year of real 15m candles of EURUSD: no weekends, times of an export's broker, whose clock is Athens'."
    return validate_candles(
        read_candle_file(market / "EURUSD_15m_mt5_2022-10_2023-10.parquet", "Europe/Athens"),
        "15m",
        "EURUSD",
        allow_gaps=True,
    )


@pytest.fixture(scope="session")
def hourly(market) -> pd.DataFrame:
    "Real 1h candles of Bitcoin, with the outages of an exchange."
    path = market / "BTCUSDT_1h_binance_spot_2020-01_2021-10.parquet"
    return validate_candles(read_candle_file(path), "1h", "BTCUSDT", allow_gaps=True)


def stage_cells(path: Path) -> list[dict]:
    """The code of a stage notebook that can run within a test.

    All but the first cell, which holds its process to a level of processors before numpy is there.
    """
    held, *cells = (
        cell
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code" and cell["source"]
    )
    assert "hold_processor()" in "".join(held["source"])
    return cells


def by_timeframe(candles: pd.DataFrame) -> dict[str, pd.DataFrame]:
    return {
        timeframe: candles if timeframe == "5m" else resample(candles, "5m", timeframe)
        for timeframe in ("5m", "15m", "1h", "4h", "1d")
    }
