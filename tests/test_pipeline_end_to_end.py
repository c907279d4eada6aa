"""The whole pipeline through DVC on a slice of real candles, in temporary clones.

Reproducible, resumable, loud on bad input.
"""

import hashlib
import html
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest
import yaml
from conftest import BTC, ROOT, real_candles
from kills import CHANGES, Kill, contents, killed, kills

from smc_ml.models.config import TrainingConfig
from smc_ml.processor import hold_environment
from smc_ml.reports.pages import external_references

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
TRAINING = TrainingConfig(**yaml.safe_load((ROOT / "params.yaml").read_text())["train"])
MODELS = TRAINING.models
TAKEN = TRAINING.event_models[-1]  # from the list, by a test
BARS = {"patch": 4, "stride": 2, "layers": 1, "heads": 2, "width": 16, "feed_forward": 16, "epochs": 1}
SMALL = {
    "steps": 60,
    "threads": 1,
    "workers": 1,
    "lstm": {"layers": 1, "hidden": 8, "epochs": 1},
    "patchtst": BARS | {"samples": {"of": "bars", "timeframe": "1h", "steps": 8}},
}
AGENT = {
    "environments": 16,
    "steps": 1024,
    "batch": 128,
    "episode_bars": 64,
    "hidden": [8],
    "seeds": [0],
    "workers": 1,
}


def environment(project: Path, held: bool = True) -> dict[str, str]:
    """The clone's own modules win over the installed ones.

    Held to the level of the processor, as under `smc run`, or not, so that each stage starts itself anew.
    """
    cleared = {name: value for name, value in os.environ.items() if name not in ("IN_TEST", "MPLBACKEND")}
    if held:
        hold_environment(cleared)
    return cleared | {
        "PYTHONPATH": str(project),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "NUMBA_CACHE_DIR": str(project.parent / "numba"),
        "GIT_AUTHOR_DATE": "2024-01-01T00:00:00Z",
        "GIT_COMMITTER_DATE": "2024-01-01T00:00:00Z",
    }


def run(project: Path, *command: str, check: bool = True, held: bool = True) -> subprocess.CompletedProcess:
    around = environment(project, held)
    done = subprocess.run(command, cwd=project, env=around, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def set_parameters(project: Path, **sections: dict) -> None:
    path = project / "params.yaml"
    settings = yaml.safe_load(path.read_text())
    for name, values in sections.items():
        settings[name] |= values
    path.write_text(yaml.safe_dump(settings, sort_keys=False))


def share_compiled(project: Path) -> None:
    """Let a clone find what this checkout and the other clones have compiled.

    numba keeps it by the folder of a module, and takes it where the module has the same content.
    """
    kept = os.environ.get("NUMBA_CACHE_DIR", str(ROOT / ".venv/numba_cache"))
    for folder in {path.parent.relative_to(ROOT) for path in (ROOT / "smc_ml").rglob("*.py")}:
        here, there = (
            Path(cache, f"{folder.name}_{hashlib.sha1(str(root / folder).encode()).hexdigest()}")
            for cache, root in ((kept, ROOT), (project.parent / "numba", project))
        )
        here.mkdir(parents=True, exist_ok=True)
        there.parent.mkdir(exist_ok=True)
        there.symlink_to(here)


def clone(folder: Path, candles: Path) -> Path:
    "The files of this repository as they are, set to the slice of real candles, committed."
    project = folder / "project"
    for path in subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0"):
        if not (ROOT / path).is_file():
            continue
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, project / path)
    for path in (
        "data.dvc",
        "params.yaml",
        "dvc.lock",
    ):  # a run of one's own changes them; the sample's are the committed ones
        (project / path).write_bytes(
            subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True, check=True).stdout
        )
    set_parameters(
        project,
        collect={"source": "files", "start": None, "end": None, "files": {"BTCUSDT": str(candles)}},
        splits={"n_folds": 2, "first_train_share": 0.5},
        train=SMALL,
        information={
            "sets": {"smc": ["smc"], "event_facts": ["event_facts"], "freqai": ["freqai"]},
            "importance": ["smc"],
        },
        controls={"seeds": 2, "edges": [0.2, 0.45], "processes": 1},
        agent=AGENT,
    )
    for command in (
        ["init", "-q", "-b", "main"],
        ["add", "-A"],
        ["-c", "user.name=test", "-c", "user.email=test@example.invalid", "commit", "-qm", "clone"],
    ):
        run(project, "git", *command)
    share_compiled(project)
    return project


@pytest.fixture(scope="module")
def slice_file(market, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("candles") / "BTCUSDT.csv"
    real_candles(BTC).loc["2023-03-01":"2023-04-14"].to_csv(path)
    return path


@pytest.fixture(scope="module")
def project(slice_file, tmp_path_factory) -> Path:
    project = clone(tmp_path_factory.mktemp("first"), slice_file)
    run(project, "dvc", "repro", held=False)
    return project


def hashes(project: Path) -> dict[str, str]:
    "Content hash of everything that the stages write, executed notebooks included."
    stages = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def test_two_runs_in_two_places_give_the_same_bytes(project, tmp_path_factory):
    other = tmp_path_factory.mktemp("second") / "project"
    run(project, "git", "clone", "-q", str(project), str(other))
    share_compiled(other)
    run(other, "dvc", "repro")
    first, second = hashes(project), hashes(other)
    assert first == second and {
        "reports/index.html",
        *(f"reports/notebooks/50_train_{model}.ipynb" for model in MODELS),
        *(f"artifacts/models/{model}" for model in MODELS),
        "artifacts/backtest",
    } <= set(first)


def test_a_second_run_has_nothing_to_do(project):
    start = time.perf_counter()
    done = run(project, "dvc", "repro")
    assert "Running stage" not in done.stdout and "up to date" in done.stdout
    assert time.perf_counter() - start < 10


def test_prose_in_a_library_notebook_reruns_nothing(project):
    path = project / "nbs/patterns/03_swings.ipynb"
    notebook = json.loads(path.read_text())
    prose = [cell for cell in notebook["cells"] if cell["cell_type"] == "markdown"][1]
    prose["source"] = ["Quite another explanation.\n"]
    path.write_text(json.dumps(notebook, indent=1))
    run(project, "nbdev_export")
    assert "Running stage" not in run(project, "dvc", "repro").stdout


def test_the_report_is_whole_and_needs_no_network(project):
    index, pages = project / "reports/index.html", sorted((project / "reports/pages").glob("*.html"))
    assert {page.stem for page in pages} == {
        *(name for name in STAGES if name not in ("code", "train", "report")),
        *(f"train_{model}" for model in MODELS),
        "setups",
        "tear_sheet",
    }
    for page in (index, *pages):
        html = page.read_text()
        assert len(html) < 10_000_000 and not external_references(html)
        assert str(project) not in html
    text = index.read_text()
    metrics = json.loads((project / "reports/metrics/backtest.json").read_text())
    assert "simulated" not in text.split("<details")[0].lower() and f"{metrics['trades']:,}" in text


class Changed(NamedTuple):
    "A run with one model fewer and a threshold that no trade reaches, before it was changed back."

    ran: str  # what DVC said
    index: str  # of the report
    pages: set[str]
    models: list[set[str]]  # of the scores, of the strategies that are judged
    learnt: dict[Path, int]  # markets of the controls, and when they were written, before
    learnt_then: dict[Path, int]
    hashes: dict[str, str]  # before


@pytest.fixture(scope="module")
def changed(project) -> Changed:
    "The run, after which the settings are the old ones again, and the old results are back."
    kept, before = (project / "params.yaml").read_text(), hashes(project)
    left = [model for model in MODELS if model != TAKEN]
    learnt = {path: path.stat().st_mtime_ns for path in (project / "artifacts/markets").rglob("*.parquet")}
    set_parameters(project, train={"models": left}, backtest={"minimum_expected_r": 9.0})
    try:
        ran = run(project, "dvc", "repro").stdout
        tables = (
            project / f"artifacts/{name}.parquet" for name in ("ensemble/scores", "judgement/strategies")
        )
        models = [set(pd.read_parquet(table)["model"]) for table in tables]
        pages = {page.stem for page in (project / "reports/pages").glob("train_*.html")}
        index = (project / "reports/index.html").read_text()
        then = {path: path.stat().st_mtime_ns for path in learnt}
    finally:
        (project / "params.yaml").write_text(kept)
    run(project, "dvc", "repro")
    return Changed(ran, index, pages, models, learnt, then, before)


@pytest.mark.slow
def test_a_run_without_a_single_trade_says_so_and_claims_nothing(changed):
    assert "no trade was taken" in changed.index and "No trade was taken" in changed.index
    assert "against random selections" not in changed.index and "lose before" not in changed.index


def test_the_metrics_of_dvc_are_the_headline_alone_and_fit_a_terminal(project):
    shown = json.loads(run(project, "dvc", "metrics", "show", "--json").stdout)[""]["data"]
    assert list(shown) == ["headline.json"]
    headline = json.loads((project / "headline.json").read_text())
    assert shown["headline.json"]["data"] == {
        name: value for name, value in headline.items() if value is not None
    }
    assert max(map(len, run(project, "dvc", "metrics", "show").stdout.splitlines())) <= 120
    page = html.unescape((project / "reports/index.html").read_text())
    assert all(line in page for line in (project / "reports/verdict.txt").read_text().splitlines())


@pytest.mark.slow
def test_a_model_that_is_taken_from_the_list_is_read_nowhere(project, changed):
    """Its predictions still lie where they were; no stage reads them, and no page shows it.

    The ledger remembers that the smaller ensemble was tried, so what is judged by it is not compared.
    """
    assert (project / f"artifacts/predictions/models/{TAKEN}.parquet").exists()
    assert changed.models == [{*TRAINING.event_models, "ensemble"} - {TAKEN}] * 2
    assert changed.pages == {f"train_{model}" for model in MODELS if model != TAKEN}
    assert "Running stage 'train" not in changed.ran
    judged = ("reports/", "artifacts/judgement")
    before = {path: md5 for path, md5 in changed.hashes.items() if not path.startswith(judged)}
    after = hashes(project)
    assert {path: after[path] for path in before} == before


@pytest.mark.slow
def test_a_changed_threshold_reruns_no_market_of_the_controls(changed):
    assert "Running stage 'controls'" in changed.ran
    assert changed.learnt and changed.learnt_then == changed.learnt


def failing(project: Path, *targets: str) -> str:
    "What a run that must fail says."
    done = run(project, "dvc", "repro", *targets, check=False)
    assert done.returncode != 0
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    "break_it, sentence",
    [
        (
            lambda c: c.drop(index=[300, 301]),
            "2 candles are missing from open_time 2023-03-02 01:00:00+00:00",
        ),
        (
            lambda c: pd.concat([c.iloc[:9], c.iloc[8:]]),
            "open_time 2023-03-01 00:40:00+00:00 is there twice: drop one",
        ),
        (
            lambda c: c.iloc[[*range(9), 10, 9, *range(11, len(c))]],
            "open_time 2023-03-01 00:45:00+00:00 stands after 2023-03-01 00:50:00+00:00: sort",
        ),
        (
            lambda c: c.assign(close=c["close"].where(c.index != 7)),
            "column close is nan at 2023-03-01 00:35:00+00:00",
        ),
        (
            lambda c: c.assign(high=c["high"].where(c.index != 7, 1.0)),
            "column high is 1.0 at 2023-03-01 00:35:00+00:00, but another price of that candle is",
        ),
    ],
    ids=["holes", "doubled", "unordered", "nan", "impossible"],
)
def test_a_bad_candle_file_stops_the_stage_with_one_sentence(
    project, slice_file, tmp_path, break_it, sentence
):
    before = contents(project, "data")
    broken = tmp_path / "broken.csv"
    break_it(pd.read_csv(slice_file)).to_csv(broken, index=False)
    set_parameters(project, collect={"files": {"BTCUSDT": str(broken)}})
    try:
        said = failing(project)
    finally:
        set_parameters(project, collect={"files": {"BTCUSDT": str(slice_file)}})
    assert f"CandleError: {broken}: {sentence}" in said and "Running stage 'patterns'" not in said
    assert not list(project.rglob("*.partial")) and contents(project, "data") == before


@pytest.mark.parametrize(
    "section, values, sentence",
    [
        ("collect", {"sauce": "files"}, "ConfigError: collect.sauce is not a known key (known: source,"),
        (
            "collect",
            {"allow_gaps": "no"},
            "ConfigError: collect.allow_gaps: input should be a valid boolean, found 'no'",
        ),
        (
            "collect",
            {"start": "2031-01-01"},
            "no open_time from 2031-01-01 to the end; the file has 2023-03-01 00:00:00+00:00",
        ),
        (
            "collect",
            {"files": {"BTCUSDT": "nowhere.parquet"}},
            "SourceError: nowhere.parquet: no such file or folder: check collect.files",
        ),
    ],
    ids=["unknown key", "wrong type", "empty range", "missing file"],
)
def test_a_bad_setting_stops_the_stage_with_one_sentence(project, section, values, sentence):
    kept, before = (project / "params.yaml").read_text(), contents(project, "data")
    set_parameters(project, **{section: values})
    try:
        assert sentence in failing(project, "collect")
    finally:
        (project / "params.yaml").write_text(kept)
    assert not list(project.rglob("*.partial")) and contents(project, "data") == before


def test_once_all_is_mended_it_goes_on_from_there(project):
    "After the failures above, which left the candles of earlier runs and the lock alone."
    before = hashes(project)
    ran = run(project, "dvc", "repro").stdout
    assert "Running stage 'train" not in ran and hashes(project) == before


PLACES_OF_THE_LSTM = ("predictions/models/lstm.parquet", "models/lstm")


def test_a_killed_stage_leaves_nothing_that_passes_for_finished(project):
    before = hashes(project)
    process = subprocess.Popen(
        ["dvc", "repro", "-s", "-f", "train@lstm"],
        cwd=project,
        env=environment(project),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    predictions, model = (project / f"artifacts/{place}" for place in PLACES_OF_THE_LSTM)
    started = time.monotonic()
    while predictions.exists() and time.monotonic() < started + 60:  # DVC deletes what the stage will write
        time.sleep(0.05)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not predictions.exists() and not model.exists()
    assert "train@lstm" in run(project, "dvc", "status").stdout
    run(project, "dvc", "repro")
    assert hashes(project) == before and not list((project / ".dvc/tmp/training").iterdir())


def trials_of(project: Path) -> dict[Path, bytes]:
    "The files of the ledger, and of what all workspaces of the clone share."
    folders = (project / "reports/trials", project / ".git/smc_ml/trials")
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*.jsonl")}


def survives(project: Path, undisturbed: dict[str, str], kill: Kill) -> str:
    """Change a setting, kill the run, change it back and run again: every file is as in a run without that.

    The ledger remembers what was tried before the kill, so that it is put back.
    """
    kept = (project / "params.yaml").read_text()
    ledger = trials_of(project)
    section, values = CHANGES[kill.stage]
    try:
        set_parameters(project, **{section: values})
        left = killed(project, kill, environment(project))
    finally:
        (project / "params.yaml").write_text(kept)
    for path in trials_of(project).keys() - ledger.keys():
        path.unlink()
    for path, content in ledger.items():
        path.write_bytes(content)
    said = run(project, sys.executable, "-m", "smc_ml.cli", "run").stdout
    assert ("dvc.lock was" in said) >= (left == "empty"), (kill, left, said)
    now = contents(project)
    assert {path for path in now | undisturbed if now.get(path) != undisturbed.get(path)} == set(), (
        kill,
        left,
    )
    return left


def test_runs_killed_at_any_moment_end_in_the_same_bytes(project):
    "The short form: two of each kind, one of them while DVC writes its lock."
    undisturbed = contents(project)
    for number, victim in enumerate(("group", "dvc", "smc")):
        survives(project, undisturbed, Kill(("splits", "horizons", "ensemble")[number], victim, "lock", 0.0))
        survives(project, undisturbed, Kill(("collect", "backtest", "report")[number], victim, "any", 2.5))


@pytest.mark.slow
def test_fifty_kills_that_hit_every_stage_end_in_the_same_bytes(project):
    undisturbed = contents(project)
    for number, kill in enumerate(kills(int(os.environ.get("SMC_ML_KILLS", "50")), seed=1)):
        left = survives(project, undisturbed, kill)
        print(f"{number + 1}: {kill.stage}, {kill.victim}, {kill.moment} {kill.after:.1f} s: dvc.lock {left}")


@pytest.mark.parametrize("left", ["", "schema: '2.0'\nstages:\n", "half"], ids=["empty", "cut", "half"])
def test_a_lock_that_a_killed_run_left_is_restored_and_said(project, left):
    lock = project / "dvc.lock"
    whole = lock.read_text()
    lock.write_text(whole[: len(whole) // 2] if left == "half" else left)
    (project / ".dvc/tmp/rwlock").write_text('{"write": {"data": {"pi')
    done = run(project, sys.executable, "-m", "smc_ml.cli", "run")
    assert done.stdout.count("dvc.lock was ") == done.stdout.count(".dvc/tmp/rwlock could not be read") == 1
    assert lock.read_text() == whole and "Running stage" not in done.stdout
