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


def work(folder: Path, seed: int = 0, calibration: str = "none", breaks: int = 10_000) -> None:
    "What the stage does, writing down each epoch that it trains; it breaks off after so many."
    one_epoch = training._one_epoch

    def counted(*arguments):
        if trained(folder) >= breaks:
            raise KeyboardInterrupt
        one_epoch(*arguments)
        with (folder / "epochs").open("a") as file:
            file.write(".")

    checkpoints = training_checkpoints("lstm", folder)
    config = TrainingConfig(lstm=LSTM, seed=seed, calibration=calibration)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_one_epoch", counted)
        run = out_of_fold("lstm", *events(), config, FOLDS, progress=False, checkpoints=checkpoints)
    write_tables({"predictions": run.predictions, "history": run.history}, folder / "out")
    save_model(run.model, folder / "out/model", run.description)
    shutil.rmtree(checkpoints.parent)


@pytest.fixture(scope="module")
def processes():
    "Processes that begin with everything imported; torch brings in the second late."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_killed_training", "torch._dynamo"])
    return context


def written(folder: Path) -> dict[str, str]:
    "SHA-256 of what a training leaves."
    files = [path for path in (folder / "out").rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def trained(folder: Path) -> int:
    "Epochs that were trained."
    path = folder / "epochs"
    return path.stat().st_size if path.is_file() else 0


def undisturbed(folder: Path, calibration: str = "none") -> dict[str, str]:
    "What a training leaves that nobody disturbs."
    work(folder, calibration=calibration)
    assert trained(folder) == 2 * EPOCHS
    return written(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, str]:
    return undisturbed(tmp_path_factory.mktemp("whole"))


def killed_after(processes, epochs: int, folder: Path, *arguments) -> None:
    "Kill a training once so many epochs were trained in its folder."
    process, until = processes.Process(target=work, args=(folder, *arguments)), time.monotonic() + 120
    process.start()
    while trained(folder) < epochs and process.exitcode is None and time.monotonic() < until:
        time.sleep(0.001)
    process.kill()
    process.join()
    assert process.exitcode == -9 and not (folder / "out").exists()


def survives_kills(processes, whole: dict[str, str], folder: Path, *arguments) -> None:
    "Kill a training at random epochs, let it end, and compare."
    random = np.random.default_rng(3)
    for after in np.sort(random.choice(np.arange(1, 2 * EPOCHS), KILLS, replace=False)):
        killed_after(processes, after, folder, *arguments)
    work(folder, *arguments)
    assert written(folder) == whole
    assert trained(folder) <= 2 * EPOCHS + KILLS  # an epoch a kill is trained twice, no finished one again
    assert not (folder / ".dvc/tmp/training/lstm").exists()


def test_killed_at_random_epochs_it_ends_with_the_same_bytes(processes, whole, tmp_path):
    survives_kills(processes, whole, tmp_path)


@pytest.mark.slow
def test_one_that_is_calibrated_does_so_too(processes, tmp_path, tmp_path_factory):
    whole = undisturbed(tmp_path_factory.mktemp("calibrated"), "temperature")
    survives_kills(processes, whole, tmp_path, 0, "temperature")


def test_what_another_training_left_is_of_no_use_and_in_nobody_s_way(whole, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        work(tmp_path, seed=1, breaks=3)
    work(tmp_path)
    assert written(tmp_path) == whole and trained(tmp_path) == 3 + 2 * EPOCHS
    assert "the training begins anew" in capsys.readouterr().err
