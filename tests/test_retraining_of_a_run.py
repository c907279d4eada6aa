"""The real steps on a small finished run: tested, registered, in the shadow, promoted, and back.

And a whole one, as one begins it at the terminal, that is killed in the stages of its pipeline.
"""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import test_tracking
import yaml
from test_pipeline_end_to_end import environment, run, slice_file  # noqa: F401
from test_pipeline_end_to_end import project as sliced  # noqa: F401
from test_tracking import project as finished  # noqa: F401

from smc_ml.live.messages import Decision, Prediction, PredictionOutcome
from smc_ml.live.store.live_store import LiveStore
from smc_ml.retraining.children import left_over
from smc_ml.retraining.config import RetrainingConfig
from smc_ml.retraining.pipeline import AutomatedTrainingPipeline
from smc_ml.retraining.steps import RETRAINING_STEPS, StepAnswer
from smc_ml.serving.manifest import check_bundle
from smc_ml.tables import write_metrics
from smc_ml.tracking.config import PromotionConfig
from smc_ml.tracking.manager import MLflowManager
from smc_ml.tracking.slots import BundleSlots

pytestmark = pytest.mark.slow
START = pd.Timestamp("2024-05-01", tz="UTC")


CANDLES = [{"path": "artifacts/candles", "md5": "ab.dir"}]
EMPTY = {"market": "shuffled", "headline": "auc", "markets": 5, "mean": 0.5, "count_p": 1.0, "pooled_p": 0.4}


def with_another_run(context):
    "A copy of the project in which a run has just ended, with its controls; its headline is another."
    shutil.copytree(context.root, context.folder, ignore=shutil.ignore_patterns("retraining", "tracking"))
    write_metrics({"auc": 0.7}, context.folder / "headline.json")
    write_metrics({"nulls": [EMPTY]}, context.folder / "reports/metrics/controls.json")
    lock = yaml.safe_load((context.folder / "dvc.lock").read_text())
    lock["stages"] |= {"collect": {"outs": CANDLES}, "controls": {"deps": CANDLES}}
    (context.folder / "dvc.lock").write_text(yaml.safe_dump(lock))
    return StepAnswer("a run")


def live_events(root, champion, challenger, count=600):
    "What both said of simulated live events, and what became of them: the challenger knows a little."
    random, messages, none = np.random.default_rng(1), [], float("nan")
    for number in range(count):
        at = START + pd.Timedelta(hours=4 * number)
        decision = Decision("SIM", at, number, 1, "fvg", "5m", at, at, 2.0, 1.0, 0.9, 1.0)
        likely = bool(random.random() < 0.5)
        won = bool(random.random() < (0.85 if likely else 0.15))
        for digest, role, said in (
            (champion, "champion", 0.5),
            (challenger, "canary", 0.56 if likely else 0.44),
        ):
            one = Prediction(
                decision.key, digest, "SIM", "5m", at, role, said, none, none, 0.1, 0.0, {}, "", "", decision
            )
            exit_at = at + pd.Timedelta(hours=3)
            result = 1.0 if won else -1.0
            outcome = "win" if won else "loss"
            messages += [
                one,
                PredictionOutcome(one.prediction_id, exit_at, at, exit_at, outcome, won, result),
            ]
    with LiveStore(root=root) as store:
        store.write(*messages)
    return at


def test_a_retrained_bundle_earns_its_place_and_the_registry_follows_when_it_loses_it(finished):  # noqa: F811
    root, clock = finished, [START]
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    write_metrics({"credible": True}, root / "reports/metrics/judgement.json")
    first = test_tracking.tracked(root)
    assert test_tracking.smc(root, "deploy", "promote", first["version"]).exit_code == 0
    steps = {"worktree": with_another_run} | {
        name: step for name, step in RETRAINING_STEPS.items() if name not in ("worktree", "train")
    }
    pipeline = AutomatedTrainingPipeline(
        root,
        RetrainingConfig(smoke_events=20, slowest_ms=20_000),
        steps=steps,
        now=lambda: clock[0],
        promotion=PromotionConfig(fewest_events=100),
    )
    began = pipeline.run()
    told = {step.step: step for step in pipeline.steps_of(began.due)}
    assert began.outcome == "waiting", began.said
    digest, slots = (
        told["smoke"].facts["digest"],
        lambda: json.loads((root / "artifacts/deployment/5m/pointer.json").read_text()),
    )
    assert slots()["candidate"] == digest and first["bundle"] in (slots()["blue"], slots()["green"])
    assert MLflowManager(root=root).version("5m", "champion").bundle == first["bundle"]
    assert pipeline.tick().said == "shadow: no live event was resolved for both bundles yet"
    clock[0] = live_events(root, first["bundle"], digest)
    ended = pipeline.tick()
    assert ended.outcome == "promoted" and "On live events that neither had seen: promote" in ended.said, (
        ended
    )
    assert "is left" not in ended.said and not pipeline.folder(ended.due).exists()
    assert MLflowManager(root=root).version("5m", "champion").bundle == digest
    assert slots()[slots()["active"]] == digest and not slots()["candidate"]
    assert pipeline.follow_service() == ""
    served = BundleSlots(root / "artifacts/deployment/5m")
    served.rollback("automatic", "3 failed", clock[0], failed=digest)
    assert pipeline.follow_service() == f"back to {first['bundle'][:12]}: 3 failed"
    assert MLflowManager(root=root).version("5m", "champion").bundle == first["bundle"]
    pipeline.close()


SMC = [sys.executable, "-m", "smc_ml.cli"]
LEASE = 5.0  # seconds


def other_settings(root):
    "New labels, committed: with them all stages after the patterns run anew."
    path = root / "params.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["labels"] |= {"stop_buffer": 0.3}
    settings["retraining"] = {"commands": ["smc run"], "lease_seconds": LEASE, "tries": 5}
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    who = ["-c", "user.name=test", "-c", "user.email=test@example.invalid"]
    run(root, "git", "add", "-A")
    run(root, "git", *who, "commit", "-qm", "other labels")


def killed_in(root, stage, with_children):
    "Begin or take up a retraining, and kill it in a stage; what it began is killed too, or left running."
    log = root / "artifacts/retraining/logs"
    for old in log.glob("*-train-1.log"):
        old.unlink()
    owner = subprocess.Popen(
        [*SMC, "retrain", "now"], cwd=root, env=environment(root), stdout=subprocess.DEVNULL
    )
    end = time.monotonic() + 600
    while not any(f"Running stage '{stage}'" in one.read_text() for one in log.glob("*-train-1.log")):
        assert time.monotonic() < end and owner.poll() is None, f"{stage} was not run"
        time.sleep(0.1)
    time.sleep(1.0)
    owner.kill()
    owner.wait()
    (folder,) = (root / "artifacts/retraining").glob("5m-*")
    begun = left_over(folder)
    assert begun
    for one in begun if with_children else ():
        one.kill()
    time.sleep(LEASE)
    return folder


def test_killed_in_the_stages_of_its_run_it_ends_as_one_that_nobody_killed(sliced):  # noqa: F811
    for words in (["bundle"], ["track"]):
        run(sliced, *SMC, *words)
    slots = BundleSlots(sliced / "artifacts/deployment/5m")  # the criteria ask for more than these six weeks
    serves = slots.put(sliced / "artifacts/bundles/5m")
    slots.deploy(serves, "trader", "the first", START)
    other_settings(sliced)
    for stage, with_children in (("labels", False), ("ensemble", True), ("judgement", False)):
        folder = killed_in(sliced, stage, with_children)
        assert slots.read().champion == serves == check_bundle(slots.place(serves), serves)
    print(run(sliced, *SMC, "retrain", "now", check=False).stdout)
    pipeline = AutomatedTrainingPipeline(sliced)
    (due,) = pipeline.history()["due"]
    steps = {step.step: step for step in pipeline.steps_of(due)}
    pipeline.close()
    assert [steps[name].status for name in ("worktree", "train", "bundle", "smoke", "parity")] == ["done"] * 5
    assert steps["train"].starts == 4 and not left_over(folder), steps["train"]
    assert slots.read().champion == serves
    run(sliced, "dvc", "repro")  # of the same settings, where nobody kills it
    run(sliced, *SMC, "bundle", "--into", "undisturbed")
    assert steps["smoke"].facts["digest"] == check_bundle(sliced / "undisturbed") != serves
