"""A run is noted once; a bundle comes into service by criteria, out of it by itself; processes follow."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from smc_ml.candles import Market, write_candles
from smc_ml.cli import app, deployment
from smc_ml.features.catalogue import write_catalogue
from smc_ml.labels.config import SplitsConfig
from smc_ml.models.config import TrainingConfig
from smc_ml.models.saving import save_model
from smc_ml.serving.bundle import Bundle
from smc_ml.serving.finished import _STAGES
from smc_ml.serving.manifest import BundleError
from smc_ml.simulation.config import SimulationConfig
from smc_ml.simulation.market import simulate_market
from smc_ml.stages.ensemble import combine_models
from smc_ml.stages.learning import events_of
from smc_ml.stages.train import train_model
from smc_ml.tables import read_table, write_metrics, write_tables
from smc_ml.tracking.config import DeploymentConfig
from smc_ml.tracking.deployer import ModelDeployer
from smc_ml.tracking.drill import DRILLS, _copied, rollback_drill
from smc_ml.tracking.history import Change
from smc_ml.tracking.lineage import TrackingError
from smc_ml.tracking.manager import MLflowManager
from smc_ml.tracking.slots import BundleSlots
from smc_ml.writing import write_table

TRAIN = {"models": ["logistic", "xgboost"]}
SHOWN = {"log_loss_gain": 0.01, "log_loss_gain_low": 0.005, "log_loss_gain_high": 0.015, "auc": None}
EARNS = {"mean_r": 0.1, "mean_r_low": 0.05, "mean_r_high": 0.15, "trades": 300}


def write_models(root, events, train):
    "What the stages `train` leave; what they said."
    learnt = events.features, events.catalogue, events.labels
    for model in train.models:
        run = train_model(model, *learnt, train, SplitsConfig(n_folds=2), progress=False).run
        write_table(run.predictions, root / f"artifacts/predictions/models/{model}.parquet")
        write_tables({"folds": run.folds}, root / f"artifacts/training/{model}")
        save_model(run.model, root / f"artifacts/models/{model}", run.description)
        write_metrics({"model": model, "auc": 0.6}, root / f"reports/metrics/train_{model}.json")
        yield run.predictions


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "The folders of a small finished run, as the stages write them."
    root, train = tmp_path_factory.mktemp("project"), TrainingConfig(**TRAIN)
    candles = simulate_market(["SIM"], "2024-01-01", "2024-02-10", SimulationConfig(edge=0.4))["SIM"].candles
    events = events_of(Market({"SIM": candles}, "5m"))
    write_candles(candles, root / "artifacts/candles/SIM_5m.parquet", "5m", source="simulated")
    write_tables(events.features, root / "artifacts/features")
    write_catalogue(events.catalogue, root / "artifacts/catalogue.json")
    write_table(events.labels, root / "artifacts/labels/labels.parquet")
    said = list(write_models(root, events, train))
    mixed = combine_models(said, events.labels).mixed
    write_table(mixed, root / "artifacts/predictions/ensemble.parquet")
    write_metrics({"ensemble": SHOWN}, root / "reports/metrics/ensemble.json")
    write_metrics(EARNS, root / "reports/metrics/backtest.json")
    write_metrics({"credible": False}, root / "reports/metrics/judgement.json")
    write_metrics({"auc": 0.5}, root / "headline.json")
    (root / "dvc.yaml").touch()
    settings = {"train": TRAIN, "ensemble": {"method": "mean"}, "promotion": {"fewest_events": 100}}
    (root / "params.yaml").write_text(yaml.safe_dump(settings))
    noted = {"params": {"params.yaml": {"ensemble": {"method": "mean"}}}}
    stages = dict.fromkeys((*_STAGES, *(f"train@{model}" for model in train.models)), noted)
    (root / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
    return root


def smc(project, *words):
    "A command in the project."
    with contextlib.chdir(project):
        return CliRunner().invoke(app, [*words], env={"SMC_USER": "anna"})


def tracked(project):
    "What the command notes."
    done = smc(project, "track", "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def first(project):
    "The first run, noted."
    return tracked(project)


@pytest.fixture(scope="module")
def asked(project, first):
    "Folder of the bundle, features and events to ask."
    features = {"SIM": read_table(project / "artifacts/features/SIM.parquet")}
    events = read_table(project / "artifacts/labels/labels.parquet").tail(40)
    return project / "artifacts/bundles/5m", features, events


def test_a_run_is_noted_once_with_all_that_it_rests_on(project, first):
    again = tracked(project)
    assert first["new"] and not again["new"] and again["run"] == first["run"]
    (run,) = MLflowManager(root=project).runs()
    assert run.params["ensemble.method"] == '"mean"' and run.metrics["account.mean_r_low"] == 0.05
    assert "ensemble.auc" not in run.metrics and run.tags["numbers_unknown"] == "1"
    assert run.tags["bundle"] == first["bundle"] and run.tags["sources"] == "simulated"
    assert len(run.tags["dvc_lock_md5"]) == 32 and len(run.tags["data_sha256"]) == 64
    elsewhere = MLflowManager(f"sqlite:///{project}/elsewhere/other.db")  # no server is locked: another path
    assert elsewhere.runs() == [] and "only run that was noted" in first["best"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    "The address of a real MLflow server; SMC_MLFLOW_SERVER names the program, of an environment of its own."
    program, place = os.environ.get("SMC_MLFLOW_SERVER"), tmp_path_factory.mktemp("server")
    if not program:
        pytest.skip("SMC_MLFLOW_SERVER names no mlflow with a server")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = (
        "--backend-store-uri",
        f"sqlite:///{place}/runs.db",
        "--artifacts-destination",
        str(place / "files"),
    )
    alone = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    command = [program, "server", "--host", "127.0.0.1", "--port", port, "--workers", "1", *where]
    process = subprocess.Popen(command, env=alone, cwd=place, start_new_session=True)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            time.sleep(1)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


@pytest.mark.slow
def test_a_real_server_keeps_what_the_database_keeps(project, first, server, tmp_path, monkeypatch):
    local = MLflowManager(root=project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    there = tracked(project)
    assert there["new"] and not tracked(project)["new"]
    manager = MLflowManager(root=project)
    (run,) = [one for one in manager.runs() if one.run_id == there["run"]]
    (same,) = [one for one in local.runs() if one.run_id == first["run"]]
    assert (run.params, run.metrics, run.tags) == (same.params, same.metrics, same.tags)
    version = manager.version("5m", there["version"])
    pd.testing.assert_frame_equal(
        manager.judged(version), local.judged(local.version("5m", first["version"]))
    )
    assert (manager.fetch(version, tmp_path / "5m") / "manifest.json").exists()
    told = "2030-01-01T00:00:00+00:00", "anna", "promoted to champion", "it is there", "", version.bundle
    change = replace(Change(1, *told), digest=Change(1, *told).hashed())
    manager._set_alias("5m", "champion", version.version, change)
    assert manager.version("5m", "champion").run_id == run.run_id and manager.changes("5m") == [change]
    gone = MLflowManager("http://anna:secret@127.0.0.1:9")
    with pytest.raises(TrackingError, match=r"^http://127.0.0.1:9: nobody answers there: look at"):
        gone.runs()


def another_run(project, number, probability):
    "A run with other out-of-fold probabilities, whose bundle differs by its headline."
    path = project / "artifacts/predictions/ensemble.parquet"
    mixed = read_table(path)
    write_table(mixed.assign(probability=probability(mixed)), path)
    write_metrics({"auc": 0.5 + number / 100}, project / "headline.json")
    (project / "dvc.lock").write_text((project / "dvc.lock").read_text() + f"# run {number}\n")
    return tracked(project)


def test_a_bundle_comes_into_service_by_the_criteria_and_the_history_says_who(project, first):
    refused = smc(project, "deploy", "promote")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "the verdict on its run is not that an edge is shown" in refused.stderr
    write_metrics({"credible": True}, project / "reports/metrics/judgement.json")
    labels = read_table(project / "artifacts/labels/labels.parquet").set_index("event_id")["won"]

    def knows(mixed):
        return np.where(mixed["event_id"].map(labels), 0.7, 0.4)

    guess = another_run(project, 1, lambda mixed: 0.5)
    good = another_run(project, 2, knows)
    same = another_run(project, 3, knows)
    assert smc(project, "deploy", "promote", guess["version"], "--why", "the first").exit_code == 0
    done = smc(project, "deploy", "promote", good["version"], "--why", "it knows more")
    assert done.exit_code == 0 and "It beats the champion on" in done.stdout, done.stderr
    refused = smc(project, "deploy", "promote", same["version"])
    assert refused.exit_code == 1 and "is not shown to be above 0" in refused.stderr
    listed = {row["version"]: row for row in json.loads(smc(project, "deploy", "list", "--json").stdout)}
    assert (listed[good["version"]]["aliases"], listed[good["version"]]["serves"]) == ("champion", "serves")
    assert listed[guess["version"]]["serves"] == "previous"
    assert listed[guess["version"]]["candles"] == "simulated" in done.stdout
    canary = smc(project, "deploy", "promote", same["version"], "--strategy", "canary")
    assert "is challenger and answers 10%" in canary.stdout
    assert smc(project, "deploy", "rollback", "--why", "enough").exit_code == 0  # the canary
    when, place = pd.Timestamp("2030-01-01", tz="UTC"), project / "artifacts/deployment/5m"
    BundleSlots(place).rollback("automatic", "3 answers failed", when, failed=good["bundle"])  # a process
    rows = json.loads(smc(project, "deploy", "history", "--json").stdout)
    assert {row["who"] for row in rows} == {"anna", "automatic"}
    assert "no longer challenger" in {row["what"] for row in rows}
    last = {of: [row for row in rows if row["of"] == of][-1] for of in ("registry", "service")}
    assert (
        last["registry"]["what"] == "rolled back to champion"
        and last["registry"]["why"] == "3 answers failed"
    )
    assert last["registry"]["after"] == last["service"]["after"] == guess["bundle"][:12]
    nothing = smc(project, "deploy", "rollback")
    assert nothing.exit_code == 1 and "nothing served before" in nothing.stderr
    wrong = smc(project, "deploy", "promote", "--strategy", "hope")
    assert wrong.exit_code == 1 and "deployment.strategy" in wrong.stderr


def test_a_deployer_says_what_its_bundle_says(asked, tmp_path):
    folder, features, events = asked
    written = []
    deployer = ModelDeployer(tmp_path / "5m", sink=written.extend)
    digest = deployer.deploy(folder, "anna", "the first")
    said, alone = deployer.predict(features, events, keep=True), Bundle.load(folder).predict(features, events)
    pd.testing.assert_frame_equal(said.drop(columns=["model_version", "role"]), alone)
    assert said["model_version"].unique().tolist() == [digest] and len(written) == len(events)
    deployer.update(events)
    summary = deployer.get_performance_summary().iloc[0]
    won, given = events["won"].to_numpy(), said["probability"].to_numpy()
    known = np.isfinite(given)
    assert summary["resolved"] == known.sum() > 20
    loss = -np.log(np.where(won, given, 1 - given))[known].mean()
    assert summary["log_loss"] == pytest.approx(loss) and deployer.health_check()["status"] == "ok"


def test_a_broken_bundle_is_gone_in_a_moment_and_no_event_is_left_without_an_answer(asked):
    found = rollback_drill(*asked)
    assert found["how"].tolist() == list(DRILLS) and found["unanswered"].eq(0).all()
    assert (found["seconds"] < 20).all()
    assert found["why"].str.contains("differs from what was bundled|broken on purpose|took more than").all()


FOLLOWS = """
import sys, time
from smc_ml.tracking.config import DeploymentConfig
from smc_ml.tracking.deployer import ModelDeployer
deployer = ModelDeployer(sys.argv[1], DeploymentConfig())
with deployer.watching():
    print("ready", "mlflow" in sys.modules, flush=True)
    before = deployer.health_check()["champion"]
    while deployer.health_check()["champion"] == before:
        time.sleep(0.005)
    print(time.time(), deployer.health_check()["champion"], flush=True)
"""


def test_a_process_that_runs_follows_the_pointer_within_a_second(asked, tmp_path):
    slots, when = BundleSlots(tmp_path / "5m"), pd.Timestamp("2024-06-01", tz="UTC")
    digest = slots.put(asked[0])
    command = [sys.executable, "-c", FOLLOWS, str(tmp_path / "5m")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline().split() == ["ready", "False"]  # and without MLflow
        start = time.time()
        slots.deploy(digest, "anna", "the first", when)
        seen, champion = process.stdout.readline().split()
        assert process.wait(30) == 0
    print(f"seen after {float(seen) - start:.2f} s, the bundle loaded")
    assert champion == digest and float(seen) - start < 5  # 0.4 s on an idle machine


def test_two_that_roll_back_at_once_roll_back_once(asked, tmp_path):
    when = pd.Timestamp("2024-06-01", tz="UTC")
    slots = BundleSlots(tmp_path / "5m", DeploymentConfig(workers=8))
    digest = slots.put(asked[0])
    slots.deploy(digest, "anna", "the first", when)
    with pytest.raises(BundleError, match="no such file"):
        slots.deploy("f" * 64, "anna", "it is not there", when)
    slots.deploy(slots.put(_copied(asked[0], tmp_path / "other", "another one")), "anna", "the next", when)
    failed, done = slots.read().champion, []

    def back():
        done.append(BundleSlots(tmp_path / "5m").rollback("automatic", "it failed", when, failed=failed))

    threads = [threading.Thread(target=back) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one is not None for one in done) == 1 and slots.read().champion == digest
    assert [change.number for change in slots.history()] == [1, 2, 3]


@pytest.mark.parametrize("command", ["list", "promote", "rollback", "history", "drill"])
def test_every_command_of_deploy_has_examples_of_itself(command):
    assert command in {each.name or each.callback.__name__ for each in deployment.registered_commands}
    said = CliRunner().invoke(app, ["deploy", command, "--help"]).stdout
    examples = said.split("Examples:\n")[1].strip().splitlines()
    assert examples and all(line.strip().startswith(f"smc deploy {command}") for line in examples)
