"""The live store on SQLite and on a real PostgreSQL: written once, written whole, and read to the bit."""

import logging
import multiprocessing
import os
import random
import signal
import sqlite3
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from live_closes import (
    FIRST,
    ODD,
    STEP,
    WORDS,
    close_at,
    decision_at,
    odd_messages,
    order_of,
    prediction_of,
    signal_of,
    time_of,
    write_closes,
)
from postgres import postgres, postgres_url  # noqa: F401
from setuptools import find_packages
from sqlalchemy import text

from smc_ml.config import UserError
from smc_ml.live.messages import AccountState, ClosedCandles, Notice
from smc_ml.live.store.checking import store_faults
from smc_ml.live.store.config import StoreConfig
from smc_ml.live.store.engines import LiveStoreError
from smc_ml.live.store.live_store import LiveStore, Written
from smc_ml.live.store.messages_as_rows import digest_of
from smc_ml.live.store.migrating import NEWEST_MIGRATION, VERSIONS, migrate
from smc_ml.live.store.tables import LIVE_TABLES

ROOT = Path(__file__).resolve().parents[1]
FORK = multiprocessing.get_context("fork")
HASTY = StoreConfig(tries=3, first_wait=0.05, longest_wait=0.1, lock_wait=0.1)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request, tmp_path):
    "Where an empty database is."
    return (
        str(tmp_path / "live.sqlite")
        if request.param == "sqlite"
        else request.getfixturevalue("postgres_url")
    )


@pytest.fixture
def store(place):
    with LiveStore(place) as store:
        yield store


# tables


def differences(store: LiveStore) -> list:
    "Between the tables of a database and those of the module."
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with store._engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSIONS})
        return compare_metadata(context, LIVE_TABLES)


def test_migrations_make_the_tables_of_the_module(store, place):
    with LiveStore(place) as other:
        assert migrate(other._engine) == NEWEST_MIGRATION
    assert differences(store) == []
    with store._engine.execution_options(writes=True).begin() as connection:
        assert connection.execute(text(f"select version_num from {VERSIONS}")).scalar() == NEWEST_MIGRATION
        connection.execute(text("alter table notices add column mood text"))
    assert [change[0] for change in differences(store)] == ["remove_column"]


def opened_at_once(place: str, barrier, answers) -> None:
    barrier.wait()
    try:
        with LiveStore(place) as store:
            answers.put(store.last_close() is None)
    except Exception as error:
        answers.put(repr(error))


def test_processes_that_open_an_empty_database_at_once_all_get_its_tables(place):
    barrier, answers = FORK.Barrier(3), FORK.Queue()
    ran(3, opened_at_once, place, barrier, answers)
    assert [answers.get() for _ in range(3)] == [True] * 3


def test_migrations_are_in_the_package():
    packages = find_packages(str(ROOT), include=["smc_ml", "smc_ml.*"])
    for path in (ROOT / "smc_ml/live/store/migrations").rglob("*.py"):
        assert ".".join(path.parent.relative_to(ROOT).parts) in packages, path
    assert '".live.store": ["migrations/*"' in (ROOT / "setup.py").read_text()


# what is read is what was written


def test_messages_come_back_to_the_bit(store):
    for turn, value in enumerate(ODD):
        word = WORDS[turn % len(WORDS)]
        with LiveStore(store.url.render_as_string(False), f"book {turn}") as book:
            given = odd_messages(value, word)
            assert book.write(*given) == (True,) * len(given) and not any(book.write(*given))
            decision, prediction, outcome, forecast, signal, *orders, fill, account, notice, event = given
            assert digest_of(book.signals()) == digest_of([signal])
            assert digest_of([book.signals()[0].decision]) == digest_of([decision])
            assert digest_of(book.predictions()) == digest_of([prediction])
            assert digest_of(book.orders()) == digest_of(orders)
            assert digest_of(book.fills()) == digest_of([fill])
            assert digest_of([book.account()]) == digest_of([account])
            assert digest_of(book.forecasts()) == digest_of([forecast])
            assert digest_of(book.notices() + book.model_events()) == digest_of([notice, event])
            row = book.resolved().iloc[0]
            assert (row["outcome"], bool(row["won"])) == (word, False) and pd.isna(row["exit_at"])
            assert repr(float(row["realised_r"])) == repr(float(value))


def test_minus_zero_is_zero_and_what_no_database_takes_is_marked(store):
    at = time_of(0)
    store.write(AccountState(at, -0.0, 0.0, 0.0, 0.0, ()), Notice(at, "feed", "info", "a\0b\ud800"))
    assert str(store.account().equity) == "0.0" and store.notices()[0].what == "a\ufffdb\ufffd"


def test_candles_and_features_come_back_to_the_bit(store):
    rng = np.random.default_rng(0)
    index = pd.date_range(FIRST, periods=50, freq="5min", unit="ns", name="open_time")
    candles = pd.DataFrame(rng.normal(100, 1, (50, 6)), index, [*"open high low close volume bid".split()])
    candles.iloc[3, 5] = np.nan
    assert (
        store.write_candles("SIM", "5m", candles) == 50
        and store.write_candles("SIM", "5m", candles[40:]) == 0
    )
    pd.testing.assert_frame_equal(store.candles("SIM", "5m"), candles, check_freq=False)
    newest = store.candles("SIM", "5m", since=index[10], until=index[30], newest=5)
    pd.testing.assert_frame_equal(newest, candles[26:31], check_freq=False)
    rows = rng.normal(size=(3, 240))
    rows[0, :7] = np.nan
    names = [f"f{number}" for number in range(240)]
    for number, row in enumerate(rows):
        closed = ClosedCandles(
            time_of(number), {"B": {"open_time": time_of(number - 1)} | dict(candles.iloc[0])}
        )
        features = names, {"SIM": row}
        store.close_of(time_of(number), candles=closed, timeframe="5m", features=features)
    found = store.features("SIM")
    assert found.to_numpy().tobytes() == rows.tobytes() and list(found) == names
    assert list(found.index) == [time_of(number) for number in range(3)]
    assert len(store.candles("B", "5m")) == 3


# written once


def test_a_close_is_written_once_and_says_whether_it_is_the_same(store):
    close = close_at(2)
    for number in (0, 1):
        store.close_of(time_of(number), **close_at(number))
    assert store.close_of(time_of(2), **close) == Written(True, True)
    before = store.counts()
    states = {"broker": b"of a process that was killed"}
    assert store.close_of(time_of(2), **close | {"states": states}) == Written(False, True)
    assert store.close_of(time_of(2), **close | {"fills": []}) == Written(False, False)
    assert store.counts() == before and store.state("broker") == b"2" and store_faults(store) == []


def test_a_signal_that_is_there_is_not_written_again(store):
    signal = signal_of(decision_at(1))
    assert store.write(signal) == (True,)
    assert store.write(signal._replace(confidence=0.9), order_of(signal)) == (False, True)
    assert store.signals() == [signal]
    written = store.close_of(time_of(1), signals=[signal, signal_of(decision_at(1, 1))])
    assert [(name, key[1]) for name, key in written.already if name == "signals"] == [("signals", signal.key)]


def test_books_do_not_see_each_other(store, place):
    store.close_of(time_of(1), **close_at(1) | {"fills": [], "outcomes": []})
    with LiveStore(place, "challenger") as other:
        assert (other.signals(), other.last_close(), other.state("broker")) == ([], None, None)
        other.close_of(time_of(0), **close_at(0))
        assert other.books() == ["challenger", "main"]
    assert len(store.signals()) == 1


def raced(place: str, barrier, answers) -> None:
    "Write twenty signals and closes as quickly as another process does."
    with LiveStore(place) as store:
        barrier.wait()
        for number in range(0, 60, 3):
            signal = signal_of(decision_at(number))
            answers.put((number, *store.write(signal), store.close_of(time_of(number), signals=[signal]).new))


def ran(number: int, target, *arguments) -> None:
    "Run processes to their end."
    processes = [FORK.Process(target=target, args=arguments) for _ in range(number)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0


def test_two_processes_that_race_for_a_signal_write_one(place):
    LiveStore(place).close()
    barrier, answers = FORK.Barrier(2), FORK.Queue()
    workers = [FORK.Process(target=raced, args=(place, barrier, answers)) for _ in range(2)]
    for worker in workers:
        worker.start()
    told = [answers.get(timeout=60) for _ in range(40)]
    for worker in workers:
        worker.join(60)
    assert sorted(number for number, new, _ in told if new) == list(range(0, 60, 3))
    assert sorted(number for number, _, new in told if new) == list(range(0, 60, 3))
    with LiveStore(place) as store:
        assert len(store.signals()) == 20 and store_faults(store) == []


# written whole


def killed_and_gone_on(place: str, kills: int, seed: int, until: int) -> list[int]:
    "Kill a writer at random moments and look at what is there; how many closes were at each."
    rng, reached = random.Random(seed), []
    for _ in range(kills):
        written, enough = FORK.Value("l", 0), rng.randint(0, 8)
        process = FORK.Process(target=write_closes, args=(place, until, written))
        process.start()
        while written.value < enough and process.is_alive():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        with LiveStore(place) as store:
            assert store_faults(store) == []
            reached.append(store.counts()["closes"])
            if reached[-1]:
                last = round((store.last_close() - FIRST) / STEP)
                assert reached[-1] == last + 1 and store.state("broker") == str(last).encode()
                assert store.state("calculator") == close_at(last)["states"]["calculator"]
    write_closes(place, until)
    return reached


def test_a_process_that_is_killed_leaves_whole_closes(place, tmp_path):
    LiveStore(place).close()
    reached = killed_and_gone_on(place, 4, 1, 60)
    assert_same_as_never_killed(place, str(tmp_path / "never_killed.sqlite"), 60)
    assert 0 < max(reached) < 60 and sorted(reached) == reached


@pytest.mark.slow
def test_a_process_that_is_killed_fifty_times_leaves_whole_closes(place, tmp_path):
    LiveStore(place).close()
    reached = killed_and_gone_on(place, 50, 2, 600)
    assert_same_as_never_killed(place, str(tmp_path / "never_killed.sqlite"), 600)
    assert len(set(reached)) > 30 and max(reached) < 600


def assert_same_as_never_killed(place: str, other: str, until: int) -> None:
    write_closes(other, until)
    with LiveStore(place) as store, LiveStore(other) as whole:
        assert store.counts() == whole.counts() and store_faults(store) == []
        for name in ("signals", "orders", "fills", "predictions"):
            assert digest_of(getattr(store, name)()) == digest_of(getattr(whole, name)()), name
        pd.testing.assert_frame_equal(store.equity(), whole.equity())
        pd.testing.assert_frame_equal(store.resolved(), whole.resolved())


def test_what_does_not_add_up_is_refused_and_leaves_nothing(store):
    close = close_at(1) | {"fills": [], "outcomes": []}
    store.close_of(time_of(1), **close)
    counts = store.counts()
    later = close_at(2)
    foreign = order_of(signal_of(decision_at(2)))._replace(signal_key="nobody's")
    with pytest.raises(LiveStoreError, match="names one that is not there"):
        store.close_of(time_of(2), **later | {"orders": [foreign]})
    with pytest.raises(LiveStoreError, match="write it with its own close"):
        store.close_of(time_of(2), **later | {"signals": close["signals"]})
    with pytest.raises(LiveStoreError, match="in the order of time"):
        store.close_of(time_of(0))
    with pytest.raises(LiveStoreError, match="give every field a value"):
        store.close_of(time_of(2), notices=[Notice(time_of(2), "feed", "info", None)])
    with pytest.raises(UserError, match="2023-10-01 00:00:00 has no zone"):
        store.write(Notice(FIRST.tz_localize(None), "feed", "info", "naive"))
    with pytest.raises(LiveStoreError, match="a dict is not kept"):
        store.write({"side": "LONG"})
    assert store.counts() == counts and store.last_close() == time_of(1) and store.state("broker") == b"1"


# what a reader asks


def test_readers_get_what_they_ask_for(store):
    for number in range(12):
        store.close_of(time_of(number), **close_at(number))
    signals = store.signals()
    assert [signal.known_at for signal in signals] == sorted(signal.known_at for signal in signals)
    assert len(signals) == 12 and store.signals(newest=2) == signals[-2:]
    within = [one for one in signals if time_of(4) <= one.known_at <= time_of(7)]
    assert store.signals(since=time_of(4), until=time_of(7)) == within != []
    assert store.signals(symbol="SIM-1") == [one for one in signals if one.symbol == "SIM-1"] != []
    first = store.signals_after(0, 5)
    assert [one for _, one in first + store.signals_after(first[-1][0])] == signals
    assert store.signals_after(store.signals_after(0)[-1][0]) == []
    assert store.holdings() == close_at(11)["account"].positions != ()
    assert list(store.equity(time_of(3), time_of(5)).index) == [time_of(number) for number in (3, 4, 5)]
    one = prediction_of(decision_at(4))
    assert store.prediction(one.prediction_id) == store.prediction(one.prediction_id[:10]) == one
    with pytest.raises(LiveStoreError, match="several predictions are named ''"):
        store.prediction("")
    with pytest.raises(LiveStoreError, match="no prediction is named '%'"):
        store.prediction("%")
    assert store.unresolved() == [prediction_of(decision_at(11, place)) for place in range(2)]
    assert store.unresolved(time_of(10)) == []
    resolved = store.resolved(time_of(3), time_of(6))
    assert resolved["exit_at"].between(time_of(3), time_of(6)).all() and len(resolved) == 5
    assert (resolved["exit_at"] > resolved["known_at"]).all() and set(resolved["direction"]) <= {-1, 1}


def test_a_reader_waits_for_no_writer(place):
    with LiveStore(place, config=HASTY) as store, LiveStore(place) as other:
        store.close_of(time_of(0), **close_at(0))
        with other._engine.execution_options(writes=True).begin() as connection:
            connection.execute(text("update states set name = 'other' where name = 'broker'"))
            begun = time.perf_counter()
            assert store.last_close() == time_of(0) and set(store.states()) == {"broker", "calculator"}
            assert time.perf_counter() - begun < 2


def test_many_threads_use_one_store(store):
    store.close_of(time_of(0), **close_at(0))
    found = []

    def work(number: int) -> None:
        store.write(Notice(time_of(0), "feed", "info", f"thread {number}"))
        found.append(len(store.notices()))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 == len(store.notices())


# a database that is away


def test_a_file_that_another_process_holds_is_waited_for_and_then_named(tmp_path):
    place = tmp_path / "live.sqlite"
    with LiveStore(place, config=HASTY) as store:
        holder = sqlite3.connect(place, isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(LiveStoreError, match=r"live\.sqlite: the database is away, 3 tries failed"):
            store.close_of(time_of(0), **close_at(0))
        timer = threading.Timer(0.2, holder.execute, ["ROLLBACK"])
        timer.start()
        assert store.close_of(time_of(0), **close_at(0)).new
        timer.join()
        holder.close()


def test_a_server_that_crashes_is_waited_for_and_then_named(postgres, postgres_url):  # noqa: F811
    patient = StoreConfig(tries=30, first_wait=0.1, longest_wait=0.3)
    with LiveStore(postgres_url, config=HASTY) as store, LiveStore(postgres_url, config=patient) as waiting:
        store.close_of(time_of(0), **close_at(0))
        postgres.stop("immediate")
        begun = time.perf_counter()
        with pytest.raises(LiveStoreError, match="the database is away, 3 tries failed"):
            store.close_of(time_of(1), **close_at(1))
        assert time.perf_counter() - begun < 5 and not store.is_there()
        starting = threading.Timer(0.5, postgres.start)
        starting.start()
        assert waiting.close_of(time_of(1), **close_at(1)).new
        starting.join()
        assert store.is_there() and store.last_close() == time_of(1) and store_faults(store) == []


def test_no_password_is_told(caplog, capsys, monkeypatch):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(
        "SMC_DATABASE_URL", "postgresql://jane:hunter2@127.0.0.1:1/live?application_name=hunter2"
    )
    with pytest.raises(LiveStoreError) as raised:
        LiveStore(config=HASTY)
    told = f"{raised.value!r} {raised.value} {raised.value.__cause__} {caplog.text} {capsys.readouterr()}"
    assert "PostgreSQL live at 127.0.0.1:1: the database is away" in told
    assert "hunter2" not in told and "jane" not in told


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "letter").write_text("Dear Jane, " * 200)
    with pytest.raises(LiveStoreError, match="letter: the database refuses .file is not a database"):
        LiveStore(tmp_path / "letter")
    with pytest.raises(LiveStoreError, match="its folder cannot be made"):
        LiveStore(tmp_path / "letter" / "live.sqlite")
