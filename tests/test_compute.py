"""Tasks here and on clusters: the same bytes, nothing lost, and a sentence where it fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from exchange_servers import BinanceServer
from postgres import postgres, postgres_url  # noqa: F401
from test_collector import tables, wish

from smc_ml.candles import Market, candles_path, read_market, write_candles
from smc_ml.compute.computing import ComputeError, computing, on_workers
from smc_ml.compute.config import ComputeConfig
from smc_ml.controls.markets import NULL_MARKETS
from smc_ml.controls.nulls import null_results, run_markets
from smc_ml.data.collection.collector import HistoricalDataCollector
from smc_ml.data.collection.spread import fetch_on_workers
from smc_ml.data.sources.config import RetryPolicy
from smc_ml.features.catalogue import write_catalogue
from smc_ml.features.config import FeatureConfig
from smc_ml.labels.config import SplitsConfig
from smc_ml.models.config import TuningConfig
from smc_ml.models.tuning import TuningError
from smc_ml.settings import check_settings
from smc_ml.simulation.config import SimulationConfig
from smc_ml.simulation.market import simulate_market
from smc_ml.stages.calls import pipeline_result
from smc_ml.stages.config import PipelineSettings
from smc_ml.stages.learning import events_of
from smc_ml.stages.symbol_years import YEAR_PARTS, YearSettings, symbol_years
from smc_ml.stages.tuning import tune_in_project
from smc_ml.tables import write_tables

ROOT = Path(__file__).resolve().parents[1]
FEW = YearSettings(features=FeatureConfig(families=("smc",)))
HERE = ComputeConfig(workers=2)


@pytest.fixture(scope="module")
def candles(tmp_path_factory):
    "A folder with simulated candles of two symbols around a turn of the year."
    folder = tmp_path_factory.mktemp("compute") / "candles"
    market = simulate_market(["A", "B"], "2023-12-28", "2024-01-04", SimulationConfig())
    write_tables({symbol: one.candles for symbol, one in market.items()}, folder)
    return folder


@pytest.fixture(scope="module")
def cluster():
    "A cluster of two workers on this machine, by its address."
    from distributed import LocalCluster

    settings = {"n_workers": 2, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": None}
    with LocalCluster(**settings, silence_logs=50) as there:
        yield ComputeConfig(backend="dask", address=there.scheduler_address, wait_seconds=60)


def contents(folder: Path) -> dict[str, bytes]:
    "Every file below a folder, by path."
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.parquet"))
    }


def die_once(place: Path, number: int) -> int:
    "The square; the process that is the first to meet three is killed in its middle."
    if number == 3 and not (place / "died").exists():
        (place / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    return number * number


def test_one_process_two_and_a_dask_cluster_write_the_same_bytes(candles, cluster, tmp_path):
    made = [
        symbol_years(candles, tmp_path / str(place), config, FEW, progress=False, parts=YEAR_PARTS)
        for place, config in enumerate([ComputeConfig(workers=1), HERE, cluster])
    ]
    files = [contents(tmp_path / str(place)) for place in range(3)]
    names = [".labels.parquet", ".parquet", ".patterns.parquet"]
    years = ["A/2023", "A/2024", "B/2023", "B/2024"]
    assert list(files[0]) == [year + name for year in years for name in names]
    assert files[0] == files[1] == files[2]
    pd.testing.assert_frame_equal(made[0], made[1])
    pd.testing.assert_frame_equal(made[0], made[2])


def test_a_dask_worker_that_is_killed_loses_nothing(cluster, tmp_path):
    with computing(cluster):
        found = on_workers(partial(die_once, tmp_path), range(12), progress=False)
    assert (tmp_path / "died").exists() and found == [number**2 for number in range(12)]


def test_a_task_that_kills_its_workers_is_told_in_a_sentence(outside):
    address, start = outside
    where = ComputeConfig(backend="dask", address=address, wait_seconds=60)
    start("one", "worker", "--nthreads", "1")
    with computing(where), pytest.raises(ComputeError, match="squares: a worker died"):
        on_workers(os._exit, [9, 9], "squares", progress=False)


def test_a_process_of_this_machine_that_is_killed_is_told_in_a_sentence(tmp_path):
    with computing(HERE), pytest.raises(ComputeError, match="squares: a worker died.*lower compute.workers"):
        on_workers(partial(die_once, tmp_path), range(12), "squares", progress=False)


def test_ray_that_is_not_installed_is_told_in_a_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ComputeError, match="ray, which is not installed.*pip install ray"):
        with computing(ComputeConfig(backend="ray")):
            pass


def test_a_scheduler_without_workers_is_told_in_a_sentence():
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address=None, silence_logs=50) as cluster:
        config = ComputeConfig(backend="dask", address=cluster.scheduler_address, wait_seconds=0.5)
        with pytest.raises(ComputeError, match="no worker after 0.5 seconds.*dask worker tcp"):
            with computing(config):
                pass


def test_the_section_of_a_settings_file(tmp_path):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8") + "\ncompute:\n  backend: dask\n  workers: 2\n"
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    assert check_settings(tmp_path / "params.yaml")["compute"] == ComputeConfig(backend="dask", workers=2)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    "A folder with the candles of a small simulated market, as the collect stage leaves them."
    root = tmp_path_factory.mktemp("project")
    simulated = simulate_market(["A"], "2024-01-01", "2024-02-01", SimulationConfig(edge=0.4))
    for symbol, one in simulated.items():
        write_candles(one.candles, candles_path(root / "artifacts/candles", symbol, "5m"), "5m")
    return root


@pytest.fixture(scope="module")
def project(stored):
    "The same with the artifacts of a run that tuning reads."
    events = events_of(read_market(stored / "artifacts/candles"))
    write_tables(events.features, stored / "artifacts/features")
    write_tables({"labels": events.labels}, stored / "artifacts/labels")
    write_catalogue(events.catalogue, stored / "artifacts/catalogue.json")
    return stored


SMALL = PipelineSettings(train={"models": ["logistic"]}, splits=SplitsConfig(n_folds=2))
JUDGE = partial(pipeline_result, settings=SMALL)
ONE_KIND = {"mirrored": NULL_MARKETS["mirrored"]}


def judged(
    project: Path, place: Path, where: ComputeConfig | None, judge=JUDGE, seeds=(1, 2)
) -> pd.DataFrame:
    "Headlines of mirrored markets, whose candles every process reads by itself."
    stored = partial(read_market, project / "artifacts/candles")
    run = partial(run_markets, where=where, progress=False)
    return null_results(stored, seeds, judge, run, ONE_KIND, place)["mirrored"]


def tuned(project: Path, place: Path, where: ComputeConfig | None, **tuning) -> pd.DataFrame:
    "Trials of the study of a model, in a copy of the project's place."
    (place / "artifacts").mkdir(parents=True)
    for path in (project / "artifacts").iterdir():
        (place / "artifacts" / path.name).symlink_to(path)
    settings = check_settings(ROOT / "params.yaml") | ({"compute": where} if where else {})
    settings["tuning"] = TuningConfig(**{"trials": 4, "n_folds": 2} | tuning)
    return tune_in_project("logistic", settings, place, progress=False).trials


def drift(market: Market, folder: Path) -> dict[str, float]:
    "A judge that is quick: how far the price of each symbol went; the candles are kept."
    write_tables(market, folder)
    return {
        symbol: candles["close"].iloc[-1] / candles["close"].iloc[0] for symbol, candles in market.items()
    }


@pytest.mark.parametrize(
    "judge", [drift, pytest.param(JUDGE, marks=pytest.mark.slow)], ids=["quick", "whole"]
)
def test_controls_are_the_same_here_and_on_a_cluster(stored, cluster, tmp_path, judge):
    places = [("here", None), ("there", cluster)]
    here, there = (judged(stored, tmp_path / name, where, judge) for name, where in places)
    pd.testing.assert_frame_equal(here, there, check_exact=True)
    assert contents(tmp_path / "here") == contents(tmp_path / "there") != {}


@pytest.mark.slow
def test_a_study_is_the_same_here_and_on_a_cluster(project, cluster, tmp_path):
    two = cluster.model_copy(update={"workers": 2})
    found = [tuned(project, tmp_path / str(place), where) for place, where in enumerate([HERE, two])]
    assert found[0]["number"].tolist() == list(range(4)) and set(found[0]["state"]) <= {"complete", "pruned"}
    pd.testing.assert_frame_equal(*found, check_exact=True)
    ledgers = [(tmp_path / str(place) / "reports/trials/tuning.jsonl").read_bytes() for place in range(2)]
    assert ledgers[0] == ledgers[1] and ledgers[0].count(b"\n") == 4
    with pytest.raises(TuningError, match="compute.workers says how many trials"):
        tuned(project, tmp_path / "none", cluster)


@pytest.mark.slow
def test_a_study_in_rounds_of_one_is_that_of_one_process(project, cluster, tmp_path):
    one = cluster.model_copy(update={"workers": 1})
    alone, there = (tuned(project, tmp_path / n, of, trials=9) for n, of in [("a", None), ("b", one)])
    pd.testing.assert_frame_equal(alone, there, check_exact=True)


def killing(place: Path, market, settings: PipelineSettings, folder: Path):
    "What the judge says; the process that judges first is killed before it has said it."
    found = pipeline_result(market, settings, folder)
    if not (place / "died").exists():
        (place / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return found


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_no_market(project, cluster, tmp_path):
    here = judged(project, tmp_path / "here", None, seeds=(1, 2, 3))
    judge = partial(killing, tmp_path, settings=SMALL)
    there = judged(project, tmp_path / "there", cluster, judge, seeds=(1, 2, 3))
    assert (tmp_path / "died").exists()
    pd.testing.assert_frame_equal(here, there, check_exact=True)
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_no_trial(project, cluster, tmp_path):
    from distributed import Client

    whole = tuned(project, tmp_path / "whole", HERE, trials=20)
    two, ends = cluster.model_copy(update={"workers": 2}), []
    with Client(cluster.address, set_as_default=False) as client, ThreadPoolExecutor(1) as thread:
        running = thread.submit(tuned, project, tmp_path / "killed", two, trials=20)
        ledger = tmp_path / "killed/reports/trials/tuning.jsonl"
        while not (ledger.exists() and ledger.read_bytes().count(b"\n") > 5):
            time.sleep(0.02)
        for pid in list(client.run(os.getpid).values())[:1]:
            os.kill(pid, signal.SIGKILL)
            ends.append(running.done())
        found = running.result()
    assert ends == [False]
    pd.testing.assert_frame_equal(whole, found, check_exact=True)


@pytest.mark.slow
def test_a_study_in_postgresql_is_that_of_a_file(project, postgres_url, tmp_path):  # noqa: F811
    url = postgres_url.replace("postgresql://", "postgresql+psycopg://")
    found = [
        tuned(project, tmp_path / str(place), HERE, storage=storage)
        for place, storage in enumerate([None, url])
    ]
    pd.testing.assert_frame_equal(*found, check_exact=True)


def test_symbols_collected_by_workers_are_those_collected_here(cluster, tmp_path):
    symbols = ["BTCUSDT", "ETHUSDT", "SOLUSDT"]
    retry = RetryPolicy(first_wait=0.001, longest_wait=0.05, timeout=2.0)
    with BinanceServer(tables(symbols, days=2)) as server:
        asked = {"symbols": symbols, "end": "2024-01-02", "base_url": server.url, "retry": retry}
        asked |= {"cross_check": True}
        here, there = (wish(tmp_path / name, **asked) for name in ("here", "there"))
        HistoricalDataCollector(here).collect()
        before = len(server.requests)
        assert fetch_on_workers(there, cluster, progress=False) == 3
        fetched = len(server.requests)
        HistoricalDataCollector(there).collect()
        assert before < fetched == len(server.requests)
        assert fetch_on_workers(there, cluster, progress=False) == 0
    assert contents(tmp_path / "here") == contents(tmp_path / "there") != {}


@pytest.fixture
def outside(tmp_path):
    "A scheduler and, when asked, workers: programs of their own, each in a folder of its own."
    file, started = tmp_path / "scheduler.json", []

    def start(name: str, *words: str, code: Path = ROOT) -> None:
        (tmp_path / name).mkdir()
        command = [sys.executable, "-m", "dask", *words, "--no-dashboard", "--scheduler-file", str(file)]
        environment = os.environ | {"PYTHONPATH": str(code)}
        environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "0"
        with open(tmp_path / name / "log.txt", "w") as log:
            started.append(
                subprocess.Popen(
                    command, cwd=tmp_path / name, env=environment, stdout=log, stderr=subprocess.STDOUT
                )
            )

    start("scheduler", "scheduler", "--host", "127.0.0.1", "--port", "0")
    while not file.exists():
        time.sleep(0.05)
    yield json.loads(file.read_text())["address"], start
    for process in started[::-1]:
        process.terminate()
        process.wait(30)


@pytest.mark.slow
def test_workers_that_were_started_elsewhere_and_one_of_other_code(candles, project, outside, tmp_path):
    from distributed import Client

    address, start = outside
    for name in ("one", "two"):
        start(name, "worker", "--nthreads", "1")
    where = ComputeConfig(backend="dask", address=address, workers=2, wait_seconds=60)
    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        folders = set(client.run(os.getcwd).values())
        assert {Path(folder).name for folder in folders} == {"one", "two"}
    for name, config in [("here", HERE), ("there", where)]:
        symbol_years(candles, tmp_path / name / "years", config, FEW, False, YEAR_PARTS)
        judged(project, tmp_path / name / "markets", config if name == "there" else None)
        tuned(project, tmp_path / name / "tuning", config)
    for made in ("years", "markets"):
        assert contents(tmp_path / "here" / made) == contents(tmp_path / "there" / made) != {}
    shutil.copytree(ROOT / "smc_ml", tmp_path / "code" / "smc_ml")
    with open(tmp_path / "code/smc_ml/rows.py", "a") as module:
        module.write("# another commit\n")
    start("other", "worker", "--nthreads", "1", code=tmp_path / "code")
    with Client(address, set_as_default=False) as client:
        client.wait_for_workers(3, timeout=60)
    with pytest.raises(ComputeError, match=r"^worker tcp://\S+ has smc_ml \w+, here it is \w+: install the"):
        symbol_years(candles, tmp_path / "refused", where, FEW, progress=False)
    assert contents(tmp_path / "refused") == {}


@pytest.mark.slow
def test_workers_of_a_cluster_of_this_machine_keep_free_memory(monkeypatch):
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)  # another cluster sets it in this process
    with computing(ComputeConfig(backend="dask", workers=1, wait_seconds=60)):
        assert on_workers(os.getenv, ["MALLOC_TRIM_THRESHOLD_"], progress=False) == [None]
