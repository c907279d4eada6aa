"""Tasks here and on clusters: the same bytes, nothing lost, and a sentence where it fails."""

import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from smc_ml.compute.computing import ComputeError, computing, on_workers
from smc_ml.compute.config import ComputeConfig
from smc_ml.features.config import FeatureConfig
from smc_ml.settings import check_settings
from smc_ml.simulation.config import SimulationConfig
from smc_ml.simulation.market import simulate_market
from smc_ml.stages.symbol_years import YEAR_PARTS, YearSettings, symbol_years
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
