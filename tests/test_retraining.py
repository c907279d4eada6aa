"""A retraining begins once, survives kill -9, and touches the champion only once it is earned."""

import json
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from functools import partial

import pandas as pd
import pytest
from postgres import postgres, postgres_url  # noqa: F401
from typer.testing import CliRunner

from smc_ml.cli import app
from smc_ml.commands.retraining import keep_schedule, live_alarms
from smc_ml.live.messages import Decision, Prediction, PredictionOutcome
from smc_ml.live.store.live_store import LiveStore
from smc_ml.retraining.book import OpenRun, RetrainingBook
from smc_ml.retraining.children import left_over
from smc_ml.retraining.config import RetrainingConfig
from smc_ml.retraining.pipeline import AutomatedTrainingPipeline
from smc_ml.retraining.schedule import RetrainingError
from smc_ml.retraining.steps import StepAnswer, make_worktree, train_again
from smc_ml.serving.manifest import check_bundle, write_bundle
from smc_ml.tracking.slots import BundleSlots
from smc_ml.writing import write_whole

DUE = pd.Timestamp("2024-05-01 03:00", tz="UTC")
RUN = OpenRun("5m", DUE, "schedule", "monthly", DUE)
LEASE = 0.5  # seconds


@pytest.fixture
def project(tmp_path):
    "A small repository whose model is one file, with a champion."
    root = tmp_path / "project"
    root.mkdir()
    (root / "params.yaml").write_text("new model\n")
    (root / "champion.txt").write_text("old model\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["add", "params.yaml"], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=root, check=True)
    return root


def pipeline_of(root, slow="", **settings):
    "Small commands, processes of their own as real ones are; one step takes a minute."

    def bundle(context):
        context.command("sh -c 'cp model.txt bundle.txt; echo done >> ../bundled'", "bundle")
        time.sleep(60 * (slow == "bundle"))
        return StepAnswer("bundled", {"model": (context.folder / "bundle.txt").read_text()})

    def promote(context):
        (context.root / "champion.txt").write_text(context.facts["model"])
        return StepAnswer("promoted by the rule")

    commands = f"sh -c 'echo try >> ../tries; sleep {60 * (slow == 'train')}; cp params.yaml model.txt'"
    config = RetrainingConfig(commands=(commands, "echo trained"), lease_seconds=LEASE, **settings)
    steps = {"worktree": make_worktree, "train": train_again, "bundle": bundle, "promote": promote}
    return AutomatedTrainingPipeline(root, config, steps=steps, place=root / "live.sqlite")


def begin(root, slow):
    "A process that begins or takes up the retraining."
    work = multiprocessing.get_context("fork").Process(
        target=lambda: pipeline_of(root, slow).run(due=DUE), daemon=True
    )
    work.start()
    return work


def until(true):
    "Wait until something is so; what it is."
    end = time.monotonic() + 30
    while not (found := true()):
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)
    return found


def kill_in(root, step, book):
    "Begin or take up the retraining, and kill its process in a step."
    process = begin(root, step)
    until(lambda: step in book.steps(RUN) and book.steps(RUN)[step].status == "running")
    until(lambda: step != "train" or (root / "artifacts/retraining/tries").is_file())
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    time.sleep(LEASE)


def test_killed_in_its_steps_it_goes_on_there_and_the_champion_is_untouched_until_then(project):
    book, place = RetrainingBook(project / "live.sqlite"), project / "artifacts/retraining"
    folder = place / "5m-20240501T030000"
    kill_in(project, "train", book)
    assert left_over(folder)  # the command outlived its owner
    kill_in(project, "bundle", book)
    assert not left_over(folder)
    assert (project / "champion.txt").read_text() == "old model\n"
    pipeline = pipeline_of(project)
    assert pipeline.tick().outcome == "promoted"
    assert (project / "champion.txt").read_text() == "new model\n"
    steps = {step.step: step for step in pipeline.steps_of(DUE)}
    assert [step.starts for step in steps.values()] == [1, 2, 2, 1]
    assert "of a try before were ended" in steps["train"].said
    assert (place / "tries").read_text() == "try\n" * 2  # what was done was not done again
    assert pipeline.history()["outcome"].tolist() == ["promoted"] and not folder.exists()
    assert pipeline.run(due=DUE) is None
    pipeline.close(), book.close()


class Killed:
    "Ends the process before or after one of its writings, as they are counted."

    def __init__(self, at):
        self.left = at

    def moment(self):
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.left -= 1

    def around(self, write):
        def counted(*words, **more):
            self.moment()
            said = write(*words, **more)
            self.moment()
            return said

        return counted


def bundle_of(folder, word):
    "A bundle with one file."
    write_bundle(folder, lambda place: write_whole(place / "model.txt", word.encode()))
    return check_bundle(folder)


def renewal(root, at=-1, minutes=0):
    "A retraining of two steps that bring a bundle into the slots; it may be killed at a writing."
    killed, slots = Killed(at), BundleSlots(root / "slots")
    slots.log.append = killed.around(slots.log.append)

    def make(context):
        return StepAnswer("made", {"digest": bundle_of(root / "made", "new")})

    def promote(context):
        if slots.read().champion != context.facts["digest"]:
            slots.deploy(slots.put(root / "made"), "automatic", "earned", DUE, "blue_green")
        return StepAnswer("promoted by the rule")

    steps, now = {"make": make, "promote": promote}, DUE + pd.Timedelta(minutes=minutes)
    config = RetrainingConfig(lease_seconds=60)
    pipeline = AutomatedTrainingPipeline(
        root, config, steps=steps, place=root / "live.sqlite", now=lambda: now
    )
    for name in ("begin", "note", "end", "release"):
        setattr(pipeline.book, name, killed.around(getattr(pipeline.book, name)))
    return pipeline


def killed_at(at, root, old):
    "Kill a retraining at a writing, look at what serves, let another take it up; whether it had ended."
    slots = BundleSlots(root / "slots")
    slots.deploy(slots.put(old), "anna", "the first", DUE)
    target = partial(renewal, root, at)
    process = multiprocessing.get_context("fork").Process(target=lambda: target().run(due=DUE))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    serves = slots.read().champion
    assert check_bundle(slots.place(serves), serves) == serves
    pipeline = renewal(root, minutes=5)  # when the lease of the dead one is over
    pipeline.tick()
    pipeline.run(due=DUE)  # which does nothing where it was begun before
    assert pipeline.history()["outcome"].tolist() == ["promoted"], at
    pipeline.close()
    moved = [(change.what, change.before != change.after) for change in slots.history()]
    assert slots.read().champion == check_bundle(root / "made") != slots.read().previous == check_bundle(old)
    assert moved.count(("deployed", True)) - moved.count(("not done", True)) == 2, moved
    return process.exitcode == 0


def test_killed_at_every_writing_it_ends_once_and_a_whole_bundle_serves_all_the_time(tmp_path):
    bundle_of(tmp_path / "old", "old")
    ended = (killed_at(at, tmp_path / str(at), tmp_path / "old") for at in range(99))
    killed = next(number for number, done in enumerate(ended) if done)
    assert (
        killed == 16
    )  # before and after: the run, both steps twice, the change of the slots, the end, the lease


def test_a_step_that_is_killed_again_and_again_is_given_up(project):
    book = RetrainingBook(project / "live.sqlite")
    kill_in(project, "train", book)
    pipeline = pipeline_of(project, tries=1)
    result = pipeline.tick()
    assert (result.outcome, "killed 1 times" in result.said) == ("failed", True)
    assert (project / "champion.txt").read_text() == "old model\n"
    pipeline.close(), book.close()


def test_what_takes_too_long_or_is_begun_twice_is_told_in_one_sentence(project):
    pipeline = pipeline_of(project, slow="train", time_limit_hours=0.5 / 3600)
    said = []

    def second():
        until(lambda: (project / "artifacts/retraining/tries").is_file())
        with pytest.raises(RetrainingError, match="under way already"):
            pipeline_of(project).run()
        said.append("refused")

    beside = threading.Thread(target=second)
    beside.start()
    result = pipeline.run(due=DUE)
    beside.join()
    assert said == ["refused"] and result.outcome == "failed"
    assert "took longer than" in result.said and "\n" not in result.said
    assert not left_over(pipeline.folder(DUE))
    pipeline.close()


@pytest.mark.parametrize("where", ["sqlite", "postgresql"])
def test_of_several_that_want_a_lease_or_a_due_time_one_gets_it(where, tmp_path, request):
    place = tmp_path / "live.sqlite" if where == "sqlite" else request.getfixturevalue("postgres_url")
    leases, begun, start = [], [], threading.Barrier(4)

    def race(number):
        book = RetrainingBook(place)
        start.wait()
        leases.append(book.lease("5m", f"owner {number}", DUE, 60))
        begun.append(book.begin(RUN))
        book.close()

    racers = [threading.Thread(target=race, args=(number,)) for number in range(4)]
    for one in racers:
        one.start()
    for one in racers:
        one.join()
    assert sorted(begun) == [False, False, False, True]
    winner = next(holder for holder in leases if holder)
    assert sorted(leases) == ["", winner, winner, winner]
    book = RetrainingBook(place)
    assert book.lease("5m", "later", DUE + pd.Timedelta(seconds=60), 60) == ""  # of a dead owner
    assert book.open_run("5m") == RUN
    book.close()


def test_what_the_live_path_predicts_worse_than_the_base_rate_begins_a_retraining(tmp_path):
    messages, none = [], float("nan")
    for number in range(160):
        at = DUE + pd.Timedelta(hours=12 * number)
        decision = Decision("SIM", at, number, 1, "fvg", "5m", at, at, 2.0, 1.0, 0.9, 1.0)
        told = (
            decision.key,
            "ab" * 32,
            "SIM",
            "5m",
            at,
            "champion",
            0.9,
            none,
            none,
            0.1,
            0.0,
            {},
            "",
            "",
            decision,
        )
        ended, won = at + pd.Timedelta(hours=3), number % 10 == 0
        one = Prediction(*told)
        became = ended, at, ended, "win" if won else "loss", won, 1.0 if won else -1.0
        messages += [one, PredictionOutcome(one.prediction_id, *became)]
    with LiveStore(root=tmp_path, book="binance") as store:
        store.write(*messages)
    steps = {"train": lambda context: StepAnswer(context.cause)}
    config = RetrainingConfig(cron="", book="binance")
    pipeline = AutomatedTrainingPipeline(tmp_path, config, steps=steps, now=lambda: at)
    alarms = live_alarms(pipeline)
    assert {(one.metric, one.level) for one in alarms} >= {("base_rate", "degraded")}
    pipeline.follow_service = lambda: ""  # there is no registry
    (line,) = keep_schedule(pipeline, rounds=1)
    assert line.endswith("promoted: performance"), line
    assert list(keep_schedule(pipeline, rounds=1)) == []  # once
    pipeline.close()


def test_the_command_says_when_it_is_due_and_what_never_is(project, monkeypatch):
    monkeypatch.chdir(project)
    (project / "dvc.yaml").write_text("stages: {}\n")

    def said(schedule, *words):
        (project / "params.yaml").write_text(f"retraining:\n  cron: {schedule}\n")
        return CliRunner().invoke(app, ["retrain", *words])

    due = said("0 2 * * 0", "schedule", "--check")
    assert due.exit_code == 0 and due.stdout.count("due Sun ") == 5, due.output
    never = said("0 2 30 2 *", "schedule", "--check")
    assert (never.exit_code, never.output.count("\n")) == (1, 1) and "never fires" in never.output
    assert "no retraining was begun yet" in said("0 2 * * 0", "status").stdout
    assert json.loads(said("0 2 * * 0", "history", "--json").stdout) == []
