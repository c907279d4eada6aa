"""The same bytes on every processor, however a stage is started.

A slice of the pipeline runs in processes whose outer variables ask for other levels of the libraries, and on
emulated processors of two makers; what it writes is compared file by file.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pandas as pd
import pytest

from smc_ml.models.config import FAST_PROBABILITY
from smc_ml.processor import LEVEL
from smc_ml.provenance import stage_notebooks

ROOT = Path(__file__).resolve().parents[1]
LAST_DAY = "2024-02-20"
OLD = {
    "NPY_DISABLE_CPU_FEATURES": "X86_V3 X86_V4 AVX512_ICL AVX512_SPR",
    "OPENBLAS_CORETYPE": "Prescott",
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "SSE4_2",
    "ARROW_USER_SIMD_LEVEL": "NONE",
    "OPENBLAS_BLOCK_FACTOR": "50",
    "TZ": "Asia/Tokyo",
}
LEVELS = {
    "wide": {"OPENBLAS_CORETYPE": "SkylakeX", "MKL_CBWR": "AVX512", "OMP_NUM_THREADS": "4"},
    "zen": {"OPENBLAS_CORETYPE": "Zen", "OPENBLAS_NUM_THREADS": "4", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "avx2": {"NPY_DISABLE_CPU_FEATURES": LEVEL["NPY_DISABLE_CPU_FEATURES"], "MKL_CBWR": "AVX2"},
    "enabled": {"NPY_ENABLE_CPU_FEATURES": "X86_V3", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "generic": {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""},  # of compiled functions
}
EMULATOR = shutil.which("qemu-x86_64")
PYTHON = os.path.realpath(sys.executable)  # an emulator knows nothing of virtual environments


def outside(**variables: str) -> dict[str, str]:
    "An environment in which nothing is held yet, with these variables."
    kept = {name: value for name, value in os.environ.items() if name not in LEVEL}
    paths = f"{ROOT}{os.pathsep}{sysconfig.get_paths()['purelib']}"
    return kept | {"PYTHONPATH": paths, "MPLBACKEND": "agg"} | variables


def python(*words: object, before: tuple[str, ...] = (), **variables: str) -> str:
    "What a fresh Python prints."
    command = [*before, PYTHON, *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, env=outside(**variables), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def hashes(folder: Path, form: str = "exact", before: tuple[str, ...] = (), **variables: str) -> dict:
    "The hash of each file that the slice writes."
    return json.loads(
        python("tests/slice_of_the_pipeline.py", folder, LAST_DAY, form, before=before, **variables)
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> tuple[Path, dict]:
    "The slice on this processor: its folder and its hashes."
    folder = tmp_path_factory.mktemp("here")
    return folder, hashes(folder)


def different(one: dict, other: dict) -> list[str]:
    "Files that are not the same."
    return [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]


def test_what_the_outer_variables_ask_for_does_not_reach_the_artifacts(here, tmp_path):
    assert len(here[1]) > 20
    assert different(here[1], hashes(tmp_path, **OLD)) == []


@pytest.mark.slow
@pytest.mark.parametrize("level", LEVELS)
def test_the_bytes_are_the_same_at_every_level(here, tmp_path, level):
    assert different(here[1], hashes(tmp_path, **LEVELS[level])) == []


@pytest.mark.slow
def test_a_process_that_is_not_held_writes_other_bytes(here, tmp_path):
    "The proofs above can fail: the levels round differently."
    found = different(hashes(tmp_path / "free", "free"), hashes(tmp_path / "old", "free", **OLD))
    assert {"events/A.parquet", "training/logistic/predictions.parquet"} <= set(found)
    assert "training/lstm/predictions.parquet" in different(here[1], hashes(tmp_path / "again", "free"))


FEATURES = (
    "import llvmlite.binding as llvm\nprint(llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten())"
)

SORTS = (
    "from smc_ml.processor import hold_processor\nhold_processor()\n"
    "import numpy\nvalues = numpy.random.default_rng(0).random(500)\n"
    "print((numpy.diff(values[values.argsort()]) >= 0).all())"
)


@pytest.mark.slow
@pytest.mark.skipif(EMULATOR is None, reason="qemu-x86_64 is not installed (Debian: qemu-user)")
@pytest.mark.parametrize("processor", ["Haswell", "EPYC-Rome"])
def test_the_bytes_are_the_same_on_an_emulated_processor(here, tmp_path, processor):
    "Minutes each; functions are compiled for the processor outside it, since that takes longest."
    before = (EMULATOR, "-cpu", processor)
    name, features = python("-c", FEATURES, before=before).split()
    cache = {"NUMBA_CACHE_DIR": str(tmp_path / "numba")}
    target = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    assert different(here[1], hashes(tmp_path / "native", **cache, **target)) == []
    right = python("-c", SORTS, before=before) == "True\n"
    emulated = different(here[1], hashes(tmp_path / "emulated", before=before, **cache))
    assert emulated == [] or not right and emulated == ["scores.json"]  # qemu 7.2: argsort does not sort


METRIC = 0.001  # what `train.bytes: fast` may cost in a metric, as README.md says


@pytest.mark.slow
@pytest.mark.parametrize("level", [{}, OLD], ids=["this", "old"])
def test_fast_networks_keep_to_the_promise(here, tmp_path, level):
    found = different(here[1], hashes(tmp_path, "fast", **level))
    assert {name for name in found if "lstm" not in name and "patchtst" not in name} <= {
        *(f"models/{model}/description.json" for model in ("logistic", "xgboost", "lightgbm")),  # the setting
        "account/mixed.parquet",
        "account/trades.parquet",
        "equity.png",
        "scores.json",
    }
    exact, fast = (
        pd.read_parquet(folder / "training/lstm/predictions.parquet") for folder in (here[0], tmp_path)
    )
    assert (exact["probability"] - fast["probability"]).abs().max() < FAST_PROBABILITY
    told = [
        pd.read_parquet(folder / "training/patchtst/predictions.parquet") for folder in (here[0], tmp_path)
    ]
    assert (told[0]["probability_up"] - told[1]["probability_up"]).abs().max() < FAST_PROBABILITY
    scores = [json.loads((folder / "scores.json").read_text()) for folder in (here[0], tmp_path)]
    for name in ("auc", "log_loss", "accuracy"):
        for one, other in zip(*(score[name] for score in scores), strict=True):
            assert abs(one - other) < METRIC, name


@pytest.mark.parametrize("path", stage_notebooks(ROOT).values(), ids=lambda path: Path(path).stem)
def test_the_first_cell_of_a_stage_holds_the_processor(path):
    cells = json.loads((ROOT / path).read_text())["cells"]
    first = next(cell for cell in cells if cell["cell_type"] == "code")
    assert "".join(first["source"]) == "from smc_ml.processor import hold_processor\n\nhold_processor()"
