"""A collector that is killed, or runs out of disk, resumes and ends with the bytes of an undisturbed run."""

import multiprocessing
import resource
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from exchange_servers import BinanceServer
from test_collector import QUICK, raw, tables, wish

from smc_ml.candles import read_candles
from smc_ml.config import UserError
from smc_ml.data.collection.collector import HistoricalDataCollector
from smc_ml.data.sources.exchanges import ExchangeSource

SYMBOLS = ["BTCUSDT", "ETHUSDT"]
KILLS = 20


@pytest.fixture(scope="module")
def processes():
    "Processes that begin with everything imported: a kill is to hit the work, not the imports."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "ccxt.async_support",
            "tenacity",
            "pandera.strategies.pandas_strategies",
            "smc_ml.data.collection.collector",
            "test_collector",
        ]
    )
    return context


@pytest.fixture(scope="module")
def server():
    "Two symbols with a hole each, in small pages."
    candles = tables(SYMBOLS, 6)
    for symbol, hole in zip(SYMBOLS, (range(900, 1000), range(1300, 1303)), strict=True):
        candles[symbol, "5m"] = candles[symbol, "5m"].drop(candles[symbol, "5m"].index[list(hole)])
    with BinanceServer(candles, page_limit=40) as server:
        yield server


def work(folder: str, url: str, end: str = "2024-01-06", largest: int | None = None, said=None) -> None:
    "What a process does: collect; `largest`: bytes that a file may have."
    if largest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    config = wish(Path(folder), symbols=SYMBOLS, end=end, kept_every=120, at_once=2)
    try:
        HistoricalDataCollector(
            config, ExchangeSource(config.source, config.market, url, QUICK, rate_limit=False)
        ).collect()
    except UserError as error:
        said.put(str(error))


def finish(processes, *arguments) -> float:
    "Let one run to its end; the seconds it took."
    began, process = time.monotonic(), processes.Process(target=work, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    return time.monotonic() - began


@pytest.fixture(scope="module")
def undisturbed(processes, server, tmp_path_factory) -> tuple[dict[str, bytes], float]:
    "The files of a run that nobody disturbs, and its seconds."
    finish(
        processes, str(tmp_path_factory.mktemp("first")), server.url
    )  # the first one waits for the imports
    folder = tmp_path_factory.mktemp("undisturbed")
    seconds = finish(processes, str(folder), server.url)
    for symbol in SYMBOLS:
        pd.testing.assert_frame_equal(
            read_candles(folder / f"raw/binance/{symbol}_5m.parquet"),
            server.expected(symbol, "5m", end=pd.Timestamp("2024-01-06", tz="UTC")),
            check_freq=False,
        )
    return raw(folder), seconds


def test_killed_at_random_moments_it_ends_with_the_same_bytes(processes, server, undisturbed, tmp_path):
    (files, seconds), random, kills, rounds, left_something = undisturbed, np.random.default_rng(11), 0, 0, 0
    while kills < KILLS:
        folder = tmp_path / str(rounds)
        while kills < KILLS:
            process = processes.Process(target=work, args=(str(folder), server.url))
            process.start()
            process.join(random.uniform(0.1, 1.0) * seconds)
            if process.exitcode is not None:
                break  # it was done before
            process.kill()  # SIGKILL
            process.join()
            kills += 1
            left_something += bool(list(folder.rglob("*.parquet")))
            for path in folder.glob("raw/binance/*.parquet"):
                assert path.read_bytes() == files[path.relative_to(folder).as_posix()]
        assert process.exitcode in (0, -9)
        finish(processes, str(folder), server.url)
        assert raw(folder) == files, f"round {rounds}"
        rounds += 1
    assert left_something > KILLS // 4  # most kills hit a download that had begun


def test_a_resumed_run_asks_only_for_what_it_had_not_kept(processes, server, undisturbed, tmp_path):
    server.requests.clear()
    finish(processes, str(tmp_path / "whole"), server.url)
    whole = sum(asked.rows is not None for asked in server.requests)
    process = processes.Process(target=work, args=(str(tmp_path / "killed"), server.url))
    process.start()
    while len(list((tmp_path / "killed").rglob(".progress/*/*.parquet"))) < 10 and process.exitcode is None:
        time.sleep(0.002)
    process.kill()
    process.join()
    server.requests.clear()
    finish(processes, str(tmp_path / "killed"), server.url)
    assert sum(asked.rows is not None for asked in server.requests) <= whole * 0.8
    assert raw(tmp_path / "killed") == undisturbed[0]


def test_a_full_disk_is_one_sentence_and_the_old_file_stands(processes, server, undisturbed, tmp_path):
    finish(processes, str(tmp_path), server.url, "2024-01-02")
    before, said = raw(tmp_path), processes.Queue()
    finish(processes, str(tmp_path), server.url, "2024-01-06", 30_000, said)
    sentence = said.get(timeout=5)
    assert (
        "the disk is full" in sentence
        and "make room and start again; what was stored before is unchanged" in sentence
        and "\n" not in sentence
    )
    after = raw(tmp_path)
    assert {name: after[name] for name in before} == before and not list(tmp_path.rglob("*.partial"))
    assert any(".progress" in name for name in after)  # what was fetched is kept
    finish(processes, str(tmp_path), server.url)  # there is room again
    assert raw(tmp_path) == undisturbed[0]
