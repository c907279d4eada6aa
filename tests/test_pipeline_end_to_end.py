"""The whole pipeline through DVC on a slice of real candles, in temporary clones.

Reproducible, resumable, loud on bad input.
"""

import html
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import BTC, ROOT, real_candles
from kills import CHANGES, Kill, contents, killed, kills

from smc_ml.reports.pages import external_references

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
MODELS, OF_BARS = ["logistic", "xgboost", "lstm"], {"xgboost"}
SMALL = {
    "models": MODELS,
    "steps": 60,
    "workers": 1,
    "lstm": {"layers": 1, "hidden": 8, "epochs": 1},
    "xgboost": {"trees": 20, "samples": {"of": "bars", "timeframe": "1h", "steps": 1}},
}


def environment(project: Path) -> dict[str, str]:
    "The clone's own modules win over the installed ones."
    cleared = {name: value for name, value in os.environ.items() if name not in ("IN_TEST", "MPLBACKEND")}
    return cleared | {
        "PYTHONPATH": str(project),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "NUMBA_CACHE_DIR": str(project.parent / "numba"),
        "GIT_AUTHOR_DATE": "2024-01-01T00:00:00Z",
        "GIT_COMMITTER_DATE": "2024-01-01T00:00:00Z",
    }


def run(project: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run(command, cwd=project, env=environment(project), capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def set_parameters(project: Path, **sections: dict) -> None:
    path = project / "params.yaml"
    settings = yaml.safe_load(path.read_text())
    for name, values in sections.items():
        settings[name] |= values
    path.write_text(yaml.safe_dump(settings, sort_keys=False))


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
        controls={"seeds": 2, "edges": [0.2, 0.45]},
    )
    for command in (
        ["init", "-q", "-b", "main"],
        ["add", "-A"],
        ["-c", "user.name=test", "-c", "user.email=test@example.invalid", "commit", "-qm", "clone"],
    ):
        run(project, "git", *command)
    return project


@pytest.fixture(scope="module")
def slice_file(market, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("candles") / "BTCUSDT.csv"
    real_candles(BTC).loc["2023-03-01":"2023-04-14"].to_csv(path)
    return path


@pytest.fixture(scope="module")
def project(slice_file, tmp_path_factory) -> Path:
    project = clone(tmp_path_factory.mktemp("first"), slice_file)
    run(project, "dvc", "repro")
    return project


def hashes(project: Path) -> dict[str, str]:
    "Content hash of everything that the stages write, executed notebooks included."
    stages = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    return {out["path"]: out["md5"] for stage in stages.values() for out in stage["outs"]}


def test_two_runs_in_two_places_give_the_same_bytes(project, tmp_path_factory):
    other = tmp_path_factory.mktemp("second") / "project"
    run(project, "git", "clone", "-q", str(project), str(other))
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
    }
    for page in (index, *pages):
        html = page.read_text()
        assert len(html) < 10_000_000 and not external_references(html)
        assert str(project) not in html
    text = index.read_text()
    metrics = json.loads((project / "reports/metrics/backtest.json").read_text())
    assert "simulated" not in text.split("<details")[0].lower() and f"{metrics['trades']:,}" in text


def test_a_run_without_a_single_trade_says_so_and_claims_nothing(project):
    kept = (project / "params.yaml").read_text()
    set_parameters(project, backtest={"minimum_expected_r": 9.0})
    try:
        run(project, "dvc", "repro")
        text = (project / "reports/index.html").read_text()
    finally:
        (project / "params.yaml").write_text(kept)
    assert "no trade was taken" in text and "No trade was taken" in text
    assert "against random selections" not in text and "lose before" not in text
    run(project, "dvc", "repro")


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


def test_a_model_that_is_taken_from_the_list_is_read_nowhere(project):
    """Its predictions still lie where they were; no stage reads them, and no page shows it.

    The ledger remembers that the smaller ensemble was tried, so what is judged by it is not compared.
    """
    kept = (project / "params.yaml").read_text()
    judged = ("reports/", "artifacts/judgement")
    before = {path: md5 for path, md5 in hashes(project).items() if not path.startswith(judged)}
    left = MODELS[:-1]
    set_parameters(project, train={"models": left})
    try:
        ran = run(project, "dvc", "repro").stdout
        scores = pd.read_parquet(project / "artifacts/ensemble/scores.parquet")
        strategies = pd.read_parquet(project / "artifacts/judgement/strategies.parquet")
        pages = {page.stem for page in (project / "reports/pages").glob("train_*.html")}
    finally:
        (project / "params.yaml").write_text(kept)
    assert (project / f"artifacts/predictions/models/{MODELS[-1]}.parquet").exists()
    assert set(scores["model"]) == set(strategies["model"]) == {*left, "ensemble"} - OF_BARS
    assert pages == {f"train_{model}" for model in left} and "Running stage 'train" not in ran
    run(project, "dvc", "repro")
    assert {path: hashes(project)[path] for path in before} == before


def test_a_changed_threshold_reruns_no_market_of_the_controls(project):
    kept = (project / "params.yaml").read_text()
    learnt = {path: path.stat().st_mtime_ns for path in (project / "artifacts/markets").rglob("*.parquet")}
    set_parameters(project, backtest={"minimum_expected_r": 0.1})
    try:
        assert "Running stage 'controls'" in run(project, "dvc", "repro", "controls").stdout
    finally:
        (project / "params.yaml").write_text(kept)
    assert learnt and {path: path.stat().st_mtime_ns for path in learnt} == learnt
    run(project, "dvc", "repro")


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
    before = hashes(project)
    broken = tmp_path / "broken.csv"
    break_it(pd.read_csv(slice_file)).to_csv(broken, index=False)
    set_parameters(project, collect={"files": {"BTCUSDT": str(broken)}})
    try:
        said = failing(project)
    finally:
        set_parameters(project, collect={"files": {"BTCUSDT": str(slice_file)}})
    assert f"CandleError: {broken}: {sentence}" in said and "Running stage 'patterns'" not in said
    assert not list(project.rglob("*.partial"))
    assert (
        "Running stage 'train" not in run(project, "dvc", "repro").stdout and hashes(project) == before
    )  # mended, it goes on from there


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
    kept = (project / "params.yaml").read_text()
    set_parameters(project, **{section: values})
    try:
        assert sentence in failing(project, "collect")
    finally:
        (project / "params.yaml").write_text(kept)
    run(project, "dvc", "repro")


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
    assert hashes(project) == before


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
