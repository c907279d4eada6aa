"""Several workers on one study, and a worker that is killed."""

import os
import signal
import subprocess
import sys

import pandas as pd
import pytest

SETUP = """
import sys, time
import numpy as np
import pandas as pd
from smc_ml.models.config import TrainingConfig, TuningConfig
from smc_ml.models.tuning import tune
from smc_ml.models.windows import event_windows

random = np.random.default_rng(0)
opens = pd.date_range("2024-01-01", periods=5_000, freq="5min", tz="UTC", name="open_time")
rows = pd.DataFrame(random.normal(size=(5_000, 2)), index=opens, columns=["momentum", "noise"])
labels = pd.DataFrame({"row": np.sort(random.integers(20, 4_900, 400)), "symbol": "A", "direction": 1})
labels["time"] = opens[labels["row"]] + pd.Timedelta("5min")
labels["exit_at"] = labels["time"] + pd.Timedelta("2h")
labels["won"] = random.random(400) < np.where(rows["momentum"].to_numpy()[labels["row"]] > 0, 0.75, 0.25)
labels["realised_r"] = np.where(labels["won"], 1.4, -1.0)
labels["event_id"] = np.arange(400)
windows, kept = event_windows({"A": rows}, labels, 1, frozenset({"momentum"}))
labels = labels.iloc[kept].reset_index(drop=True)
place, count = sys.argv[1], int(sys.argv[2])
told = []


def tried(section):
    told.append(section.logistic.inverse_penalty)
    print("trial", flush=True)
    time.sleep(float(sys.argv[3]))


config = TuningConfig(trials=count, n_folds=2, prune=False)
train = TrainingConfig(steps=1)
found = tune("logistic", windows, labels, train, config=config, place=place, tried=tried, progress=False)
found.trials.assign(told=len(told)).to_json(sys.argv[4], orient="records")
"""


def worker(place, count, pause, out):
    words = [sys.executable, "-c", SETUP, place, count, pause, out]
    return subprocess.Popen([str(word) for word in words], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kind", ["file", "database"])
def test_two_workers_share_a_study(tmp_path, kind):
    place = tmp_path / "study.log" if kind == "file" else f"sqlite:///{tmp_path}/study.db"
    if kind == "database":
        worker(place, 1, 0, tmp_path / "first.json").wait()  # two at once would both make its tables
    both = [worker(place, 8, 0.1, tmp_path / f"{number}.json") for number in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    tables = [pd.read_json(tmp_path / f"{number}.json") for number in range(2)]
    trials = max(tables, key=lambda table: (table["state"] == "complete").sum())
    assert trials["number"].is_unique and 8 <= len(trials) <= 9  # both may ask for the last one
    assert sum(table["told"].iloc[0] for table in tables) == len(trials) - (kind == "database")
    assert trials["inverse_penalty"].round(12).nunique() >= len(trials) - 1  # both may try the present one


def test_a_killed_worker_leaves_a_failed_trial_and_the_study_goes_on(tmp_path):
    place = tmp_path / "study.log"
    killed = worker(place, 4, 60, tmp_path / "killed.json")
    assert killed.stdout.readline() == "trial\n"
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert worker(place, 4, 0, tmp_path / "next.json").wait() == 0
    trials = pd.read_json(tmp_path / "next.json")
    assert trials["state"].tolist() == ["fail", *["complete"] * 4]
