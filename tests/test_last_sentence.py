"""However a run is started and however it fails, the last thing in the terminal is one sentence."""

import subprocess
from pathlib import Path

import pytest
from exchange_servers import BinanceServer, FaultSchedule
from test_pipeline_end_to_end import clone, run, set_parameters

from smc_ml.simulation.market import random_walk

CANDLES = random_walk(600, seed=3)[["open", "high", "low", "close", "volume"]]
ENGINE = "-k python3 --engine terminal --no-progress-bar --log-level ERROR"
STAGE = "papermill nbs/pipeline/10_collect.ipynb reports/notebooks/10_collect.ipynb -f params.yaml"
STARTED = {
    "smc run": "smc run collect",
    "dvc repro": "dvc repro collect",
    "papermill with the project's engine": f"{STAGE} {ENGINE}",
    "papermill alone": STAGE,
}
FAILING = {
    "a server that never answers": (
        {"symbols": ["BTCUSDT", "ETHUSDT"]},
        ("500",),
        "SourceError: binance: no usable answer in 2 attempts",
    ),
    "a symbol that is not listed": (
        {"symbols": ["BTCUSDT", "NOPEUSDT"]},
        (),
        "UnknownMarket: binance: symbol 'NOPEUSDT' is unknown or delisted",
    ),
}


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    project = clone(tmp_path_factory.mktemp("terminal"), Path("unused.csv"))
    (project / "data").mkdir()
    return project


def lines(done: subprocess.CompletedProcess) -> list[str]:
    "What the terminal shows, as far as it matters: standard error comes before what the run itself says."
    shown = done.stderr.replace("\r", "\n") + done.stdout * (done.args[0] == "smc")
    return [line for line in shown.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("what", "how"),
    [*(("a server that never answers", how) for how in STARTED), ("a symbol that is not listed", "smc run")],
)
def test_a_failing_collection_ends_with_one_sentence(project, how, what):
    changes, faults, sentence = FAILING[what]
    schedule = FaultSchedule(1, 1.0, faults) if faults else None
    with BinanceServer({("BTCUSDT", "5m"): CANDLES}, schedule) as server:
        settings = {"source": "binance", "start": "2024-01-01", "end": "2024-01-02", "base_url": server.url}
        settings |= {"files": {}, "retry": {"attempts": 2, "first_wait": 0.01}} | changes
        set_parameters(project, collect=settings)
        done = run(project, *STARTED[how].split(), check=False, held=False)
    assert done.returncode != 0
    *before, last = lines(done)
    if how == "dvc repro":  # DVC has a line of its own after it
        assert last.startswith("ERROR: failed to reproduce 'collect'")
        *before, last = before
    assert last.startswith(sentence), "\n".join(lines(done)[-30:])
    if how != "papermill alone":  # which shows where it was itself
        assert not [line for line in before if "Traceback" in line or line.startswith("  File ")]
