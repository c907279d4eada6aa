"A stage of training that is killed goes on in the midst of the fold it was at, and ends with the same bytes."

import hashlib
import multiprocessing
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from test_purged_tails import events

from smc_ml.labels.config import SplitsConfig
from smc_ml.models import training
from smc_ml.models.config import TrainingConfig
from smc_ml.models.out_of_fold import out_of_fold
from smc_ml.models.saving import save_model
from smc_ml.stages.train import training_checkpoints
from smc_ml.tables import write_tables

FOLDS, EPOCHS, KILLS = SplitsConfig(n_folds=2, first_train_share=0.5), 8, 3
LSTM = {"layers": 1, "hidden": 8, "epochs": EPOCHS, "patience": EPOCHS, "batch_size": 16, "dropout": 0.3}


def work(folder: str, seed: int = 0, calibration: str = "none") -> None:
    "What the stage does, writing down each epoch that it trains."
    root, one_epoch = Path(folder), training._one_epoch

    def counted(*arguments):
        one_epoch(*arguments)
        with (root / "epochs").open("a") as file:
            file.write(".")

    training._one_epoch = counted
    checkpoints = training_checkpoints("lstm", root)
    config = TrainingConfig(lstm=LSTM, seed=seed, calibration=calibration)
    run = out_of_fold("lstm", *events(), config, FOLDS, progress=False, checkpoints=checkpoints)
    write_tables({"predictions": run.predictions, "history": run.history}, root / "out")
    save_model(run.model, root / "out/model", run.description)
    shutil.rmtree(checkpoints.parent)


@pytest.fixture(scope="module")
def processes():
    "Processes that begin with everything imported; torch brings in the second late."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_killed_training", "torch._dynamo"])
    return context


def finish(processes, *arguments) -> None:
    process = processes.Process(target=work, args=arguments)
    process.start()
    process.join(120)
    assert process.exitcode == 0


def written(folder: Path) -> dict[str, str]:
    "SHA-256 of what a training leaves."
    files = [path for path in (folder / "out").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def trained(folder: Path) -> int:
    "Epochs that were trained."
    path = folder / "epochs"
    return path.stat().st_size if path.is_file() else 0


@pytest.fixture(scope="module")
def whole(processes, tmp_path_factory) -> Path:
    "A training that nobody disturbs."
    folder = tmp_path_factory.mktemp("whole")
    finish(processes, str(folder))
    assert trained(folder) == 2 * EPOCHS
    return folder


def killed_after(processes, epochs: int, *arguments) -> None:
    "Kill a training once so many epochs were trained in its folder."
    process, until = processes.Process(target=work, args=arguments), time.monotonic() + 120
    process.start()
    while trained(Path(arguments[0])) < epochs and process.exitcode is None and time.monotonic() < until:
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -9 and not Path(arguments[0], "out").exists()


def ends_as(processes, undisturbed: Path, folder: Path, *arguments) -> None:
    "Kill a training at random epochs, let it end, and compare."
    random = np.random.default_rng(3)
    for after in np.sort(random.choice(np.arange(1, 2 * EPOCHS), KILLS, replace=False)):
        killed_after(processes, after, str(folder), *arguments)
    finish(processes, str(folder), *arguments)
    assert written(folder) == written(undisturbed)
    assert trained(folder) <= 2 * EPOCHS + KILLS  # an epoch a kill is trained twice, no finished one again
    assert not (folder / ".dvc/tmp/training/lstm").exists()


def test_killed_at_random_epochs_it_ends_with_the_same_bytes(processes, whole, tmp_path):
    ends_as(processes, whole, tmp_path)


@pytest.mark.slow
def test_one_that_is_calibrated_does_so_too(processes, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    finish(processes, str(whole), 0, "temperature")
    ends_as(processes, whole, killed, 0, "temperature")


def test_what_another_training_left_is_of_no_use_and_in_nobody_s_way(processes, whole, tmp_path):
    killed_after(processes, 3, str(tmp_path), 1)
    finish(processes, str(tmp_path))
    assert written(tmp_path) == written(whole) and trained(tmp_path) >= 2 * EPOCHS + 3
