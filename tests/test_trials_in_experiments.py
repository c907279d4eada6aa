"""No sequence of DVC's commands loses a trial: a small project that keeps its ledger as the pipeline does."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from smc_ml.evaluation.trials import read_trials

PIPELINE = """stages:
  backtest:
    cmd: python backtest.py
    deps: [backtest.py]
    params: [backtest]
    outs:
      - account
      - reports/trials/backtest.jsonl: {cache: false, persist: true}
  judgement:
    cmd: python judgement.py
    deps: [judgement.py, account, reports/trials/backtest.jsonl]
    outs:
      - reports/trials/judgement.jsonl: {cache: false, persist: true}
    metrics:
      - judgement.json: {cache: false}
"""
BACKTEST = """import yaml
from pathlib import Path
from smc_ml.evaluation.trials import backtest_trial, record_trials
from smc_ml.costs import Costs
from smc_ml.trading.config import BacktestConfig
settings = yaml.safe_load(open("params.yaml"))["backtest"]
trial = backtest_trial("predictions", BacktestConfig(**settings), Costs())
record_trials("reports/trials/backtest.jsonl", [trial], {"SIMA": ["2024-01-01", "2024-05-30"]})
Path("account").write_text(str(settings))
"""
JUDGEMENT = """import json
from pathlib import Path
from smc_ml.evaluation.trials import count_trials, gather_trials, record_trials
gather_trials("reports/trials", "reports/trials/judgement.jsonl")
record_trials("reports/trials/judgement.jsonl", [])
Path("judgement.json").write_text(json.dumps({"trials": count_trials("reports/trials")}))
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    "A clone with a finished run of the smallest expected result of 0."
    folder = tmp_path_factory.mktemp("clone")
    with pytest.MonkeyPatch.context() as patch:
        surround(patch, folder)
        run("git", "init", "-q", "-b", "main")
        run("dvc", "init", "-q")
        run("dvc", "config", "core.analytics", "false")
        run("dvc", "config", "core.autostage", "true")
        texts = {"dvc.yaml": PIPELINE, "backtest.py": BACKTEST, "judgement.py": JUDGEMENT}
        for name, text in texts.items():
            Path(name).write_text(text)
        change(0.0)
        run("dvc", "repro", "-q")
        run("git", "add", "-A")
        run("git", "commit", "-qm", "first")
    return folder


@pytest.fixture
def project(finished, tmp_path, monkeypatch) -> Path:
    "A copy of the finished clone, to work in."
    shutil.copytree(finished, tmp_path / "clone", symlinks=True)
    surround(monkeypatch, tmp_path / "clone")
    return tmp_path / "clone"


def surround(patch: pytest.MonkeyPatch, folder: Path) -> None:
    "The working folder, and a surrounding in which this package, dvc and git are found."
    patch.chdir(folder)
    patch.setenv("PYTHONPATH", str(ROOT))
    patch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
    for role in ("AUTHOR", "COMMITTER"):
        patch.setenv(f"GIT_{role}_NAME", "a")
        patch.setenv(f"GIT_{role}_EMAIL", "a@b")
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        patch.delenv(name, raising=False)


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def change(threshold: float) -> None:
    Path("params.yaml").write_text(f"backtest:\n  minimum_expected_r: {threshold}\n")


def known() -> set[float]:
    "The thresholds that the ledger knows."
    settings = read_trials("reports/trials")["settings"]
    return {one["backtest"].get("minimum_expected_r", 0.0) for one in settings}


def written() -> set[float]:
    "Those that git keeps."
    files = Path("reports/trials").glob("*.jsonl")
    rows = [json.loads(line)["settings"] for file in files for line in file.read_text().splitlines()]
    return {one["backtest"].get("minimum_expected_r", 0.0) for one in rows}


def counted() -> int:
    return json.loads(Path("judgement.json").read_text())["trials"]


def experiment(threshold: float, *options: str) -> None:
    run(
        "dvc",
        "exp",
        "run",
        "-n",
        f"at-{threshold}",
        "-S",
        f"backtest.minimum_expected_r={threshold}",
        *options,
    )


def test_an_experiment_elsewhere_then_one_here_then_the_first_applied(project):
    experiment(0.05, "--temp")
    assert known() == {0.0, 0.05} and written() == {0.0}
    experiment(0.07)
    assert known() == written() == {0.0, 0.05, 0.07} and counted() == 3
    run("dvc", "exp", "apply", "at-0.05")
    assert known() == {0.0, 0.05, 0.07}
    change(0.09)
    run("dvc", "repro", "-q")
    assert known() == written() == {0.0, 0.05, 0.07, 0.09} and counted() == 4
    run("dvc", "exp", "branch", "at-0.05", "other")
    run("git", "checkout", "-qf", "other")
    run("dvc", "repro", "-q")
    assert known() == {0.0, 0.05, 0.07, 0.09}
    change(0.0)
    run("dvc", "repro", "-q")
    assert written() == {0.0, 0.05, 0.07, 0.09} and counted() == 4


def test_a_run_that_was_never_committed_is_known_after_a_checkout(project):
    change(0.05)
    run("dvc", "repro", "-q")
    run("git", "checkout", "-qf", "main")
    assert (written(), known()) == ({0.0}, {0.0, 0.05})
    change(0.07)
    run("dvc", "repro", "-q")
    assert written() == {0.0, 0.05, 0.07} and counted() == 3
    run("git", "worktree", "add", "-q", "--detach", "../beside", "main")
    os.chdir("../beside")
    assert (written(), known()) == ({0.0}, {0.0, 0.05, 0.07})


def test_a_run_that_changes_nothing_leaves_every_byte(project):
    run("dvc", "repro", "-q", "--force")
    assert run("git", "status", "--short") == "" and known() == {0.0}


@pytest.mark.slow
def test_queued_experiments_at_once(project):
    for threshold in (0.05, 0.07):
        experiment(threshold, "--queue")
    run("dvc", "queue", "start", "-q", "-j", "2")
    for _ in range(240):
        if known() == {0.0, 0.05, 0.07} and "Running" not in run("dvc", "queue", "status"):
            break
        time.sleep(0.5)
    assert known() == {0.0, 0.05, 0.07}
