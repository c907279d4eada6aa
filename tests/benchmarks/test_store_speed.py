"""Closes, signals and candles a second, into SQLite on this disk and a PostgreSQL that waits for it."""

from itertools import count

import numpy as np
import pandas as pd
import pytest
from live_closes import FIRST, close_at, decision_at, signal_of, time_of
from postgres import postgres, postgres_url  # noqa: F401

from smc_ml.live.store.live_store import LiveStore

PLACES = ["sqlite", "postgresql"]
CANDLES = 20_000


@pytest.fixture(params=PLACES)
def store(request, tmp_path):
    if request.param == "sqlite":
        place = str(tmp_path / "live.sqlite")
    else:
        place = request.getfixturevalue("postgres_url")
        server = request.getfixturevalue("postgres")
        server.stop("fast")
        server.start(durable=True)
    with LiveStore(place) as store:
        yield store


@pytest.mark.benchmark(group="all of a close, one transaction")
def test_closes(benchmark, store):
    numbers = count()

    def made():
        number = next(numbers)
        return (time_of(number),), close_at(number)

    benchmark.pedantic(store.close_of, setup=made, rounds=300)
    assert store.counts()["closes"] >= 300


@pytest.mark.benchmark(group="a signal that is there is sent again")
def test_signals_that_are_there(benchmark, store):
    signal = signal_of(decision_at(1))
    store.write(signal)
    assert benchmark.pedantic(store.write, (signal,), rounds=200) == (False,)


@pytest.mark.benchmark(group=f"{CANDLES:,} candles, one transaction")
def test_candles(benchmark, store):
    index = pd.date_range(FIRST, periods=CANDLES, freq="5min", unit="ns")
    columns = ["open", "high", "low", "close", "volume"]
    candles = pd.DataFrame(np.random.default_rng(0).normal(100, 1, (CANDLES, 5)), index, columns)
    numbers = count()
    work = lambda: store.write_candles(f"SIM-{next(numbers)}", "5m", candles)  # noqa: E731
    assert benchmark.pedantic(work, rounds=3) == CANDLES
    benchmark.extra_info["rows a second"] = round(CANDLES / benchmark.stats.stats.median)


@pytest.mark.benchmark(group="the newest 50 signals of 2,000")
def test_newest_signals(benchmark, store):
    store.write(*(signal_of(decision_at(number)) for number in range(2000)))
    assert len(benchmark.pedantic(lambda: store.signals(newest=50), rounds=100)) == 50
