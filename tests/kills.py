"""Runs of the pipeline that are killed: with which settings, who, when, and what is left of a project."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

CHANGES: dict[str, tuple[str, dict]] = {
    "code": ("controls_full", {"seeds": 3}),  # read by no stage: it is forced
    "collect": ("collect", {"end": "2023-04-12"}),
    "patterns": ("patterns", {"zone_age": 150}),
    "regimes": ("regimes", {"iterations": 20}),
    "labels": ("labels", {"stop_buffer": 0.3}),
    "horizons": ("horizons", {"dead_band": 0.6}),
    "splits": ("splits", {"embargo_minutes": 90}),
    "features": ("features", {"momentum_bars": 24}),
    "information": ("information", {"importance": []}),
    "train@logistic": ("train", {"logistic": {"inverse_penalty": 0.2}}),
    "train@xgboost": ("train", {"xgboost": {"trees": 20}}),
    "train@lstm": ("train", {"lstm": {"layers": 1, "hidden": 6, "epochs": 1}}),
    "leaderboard": ("leaderboard", {"importance_events": 100}),
    "ensemble": ("ensemble", {"temperature": 0.05}),
    "backtest": ("backtest", {"draws": 200}),
    "agent": ("agent", {"drawdown_penalty": 0.6}),
    "judgement": ("judgement", {"draws": 200}),
    "controls": ("controls", {"edges": [0.2, 0.4]}),
    "report": ("report", {"candles": 200}),
}
VICTIMS = ("group", "dvc", "smc")  # dvc with its stage; dvc alone; `smc run` alone, which started dvc
MOMENTS = ("any", "lock")  # some seconds into the stage; while dvc.lock is being written
LONGEST = 8.0  # seconds into the stage


class Kill(NamedTuple):
    "One run that is killed."

    stage: str  # whose setting is changed, and that has begun
    victim: str  # of `VICTIMS`
    moment: str  # of `MOMENTS`
    after: float  # seconds into the stage, where the moment is any


def kills(number: int, seed: int, stages: Mapping[str, object] = CHANGES) -> Iterator[Kill]:
    "Every stage in turn, with every victim, in random order and at random moments."
    rng = random.Random(seed)
    for turn in range(number):
        if turn % len(stages) == 0:
            left = rng.sample(list(stages), len(stages))
        moment = rng.choices(MOMENTS, (0.7, 0.3))[0]
        yield Kill(left[turn % len(left)], VICTIMS[turn % 3], moment, rng.uniform(0, LONGEST))


def contents(project: Path, *names: str) -> dict[str, str]:
    """SHA-256 of every file that a run writes, or of those in some folders, by path.

    Without the markets that the controls keep for later, and the seconds that stages took.
    """
    folders = (project / name for name in names or ("artifacts", "data", "reports"))
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(project).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in [*files, project / "dvc.lock", project / "data.dvc"]
        if not path.is_relative_to(project / "artifacts/markets") and path.name != "times.js"
    }


def _begun(process: subprocess.Popen, stage: str) -> None:
    "Wait until DVC says that it runs the stage, or takes what an earlier run of these settings gave."
    for line in process.stdout:
        if f"Running stage '{stage}'" in line or f"Stage '{stage}' is cached" in line:
            return
    raise AssertionError(f"{stage} was not run")


def _lock_is_being_written(lock: Path, process: subprocess.Popen) -> None:
    "Wait until DVC has emptied its lock; it takes some tenths of a second to write it anew."
    size, until = lock.stat().st_size, time.monotonic() + 120
    while lock.stat().st_size >= size and process.poll() is None and time.monotonic() < until:
        size = max(size, lock.stat().st_size)
        time.sleep(0.001)


def killed(project: Path, kill: Kill, environment: Mapping[str, str]) -> str:
    "Run a project, kill it, and say what became of its lock: empty, shorter, or as long as it was."
    words = ["-f", "-s", "code"] if kill.stage == "code" else []
    started = ["dvc", "repro"] if kill.victim != "smc" else [sys.executable, "-m", "smc_ml.cli", "run"]
    lock, pipes = (
        project / "dvc.lock",
        {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True},
    )
    length = lock.stat().st_size
    process = subprocess.Popen(
        [*started, *words], cwd=project, env=environment, start_new_session=True, bufsize=1, **pipes
    )
    _begun(process, kill.stage)
    if kill.moment == "lock":
        _lock_is_being_written(lock, process)
    else:
        time.sleep(kill.after)
    (os.killpg if kill.victim == "group" else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    left = lock.stat().st_size
    return "empty" if not left else "shorter" if left < length - 200 else "whole"
