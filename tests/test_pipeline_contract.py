"""Every stage keeps the promises that make it reproducible.

Parameters, settings, dependencies, and a clean notebook without logic.
"""

import ast
import json
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from smc_ml.candles import Market
from smc_ml.models.config import TrainingConfig, model_settings
from smc_ml.provenance import code_hashes, stage_notebooks, write_code
from smc_ml.reports.summary import HEADLINE
from smc_ml.settings import SECTIONS
from smc_ml.simulation.config import SimulationConfig
from smc_ml.simulation.market import simulate_market
from smc_ml.stages.learning import events_of
from smc_ml.tables import read_table, write_tables

ROOT = Path(__file__).resolve().parents[1]
ALL_STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = {name: stage for name, stage in ALL_STAGES.items() if name != "code"}  # those with a notebook
SETTINGS = yaml.safe_load((ROOT / "params.yaml").read_text())
MODELS = SETTINGS["train"]["models"]


def command_of(stage) -> str:
    "The line that runs papermill."
    lines = [stage["cmd"]] if isinstance(stage["cmd"], str) else stage["cmd"]
    return next(line for line in lines if line.startswith("papermill "))


def notebook_of(name: str) -> Path:
    return ROOT / re.search(r"papermill (\S+\.ipynb)", command_of(STAGES[name]))[1]


def cells_of(name: str) -> list[dict]:
    return json.loads(notebook_of(name).read_text())["cells"]


def source_of(cell: dict) -> str:
    return "".join(cell["source"])


def code_of(name: str) -> str:
    return "\n".join(source_of(cell) for cell in cells_of(name) if cell["cell_type"] == "code")


def paths_of(entries) -> set[str]:
    return {entry if isinstance(entry, str) else next(iter(entry)) for entry in entries or ()}


def sections_of(name: str) -> set[str]:
    "Sections of params.yaml of which a stage tracks all or some keys."
    return {key.split(".")[0] for key in STAGES[name]["params"]}


def parameters_of(name: str) -> dict[str, object]:
    "The defaults of the tagged cell; there must be exactly one, of plain literals."
    tagged = [cell for cell in cells_of(name) if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1, "exactly one cell tagged 'parameters'"
    return {
        target.id: ast.literal_eval(node.value)
        for node in ast.parse(source_of(tagged[0])).body
        for target in node.targets
    }


def test_stages_sections_and_notebooks_share_their_names():
    assert set(STAGES) <= set(SETTINGS) == set(SECTIONS)
    assert (
        {notebook_of(name).stem.split("_", 1)[1] for name in STAGES}
        == set(STAGES)
        == {path.stem.split("_", 1)[1] for path in (ROOT / "nbs/pipeline").glob("*.ipynb")}
    )


@pytest.mark.parametrize("name", STAGES)
def test_every_passed_parameter_is_declared(name):
    passed = set(re.findall(r"-p (\w+)", command_of(STAGES[name])))
    assert passed | sections_of(name) == set(parameters_of(name))


@pytest.mark.parametrize("name", STAGES)
def test_the_defaults_of_a_notebook_are_valid_settings(name):
    for section, default in parameters_of(name).items():
        if section in SECTIONS:
            SECTIONS[section](**default)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_tracks_the_sections_it_reads(name):
    names = {node.id for node in ast.walk(ast.parse(code_of(name))) if isinstance(node, ast.Name)}
    assert names & set(SETTINGS) == sections_of(name)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_that_reads_the_list_of_models_reads_nothing_else_of_the_training(name):
    read = set(re.findall(r"TrainingConfig\(\*\*train\)(\.\w+)?", code_of(name)))
    assert ("train.models" in STAGES[name]["params"]) == (read == {".models"})


def test_a_model_is_trained_anew_for_its_own_settings_and_those_of_all_only():
    "Another list of models, or another model's settings, retrain none."
    own = model_settings()
    common = {f"train.{name}" for name in TrainingConfig.model_fields if name not in {"models", *own}}
    tracked = {key for key in STAGES["train"]["params"] if key.startswith("train")}
    assert tracked == {*common, "train.${item.model}"}
    assert set(MODELS) <= set(SETTINGS["train"]), "DVC asks for the settings of each model, if only {}"


def test_every_command_ends_with_its_run_and_runs_alone():
    "A notebook is told who runs it, and any other program is guarded."
    dvc = yaml.safe_load((ROOT / "dvc.yaml").read_text())
    told = {name: text for each in dvc["vars"] for name, text in each.items()}
    assert '-p started_by "$PPID"' in told["options"] and told["guard"].endswith("smc_ml.runs.guard $PPID")
    for stage in ALL_STAGES.values():
        for line in [stage["cmd"]] if isinstance(stage["cmd"], str) else stage["cmd"]:
            word = {"papermill": "${options}", "cp": "data.dvc"}.get(line.split()[0], "${guard}")
            assert word in line


def test_every_target_of_make_runs_the_pipeline_through_smc():
    "What a killed run left is neither run on nor committed."
    lines = [line.strip("\t@") for line in (ROOT / "Makefile").read_text().splitlines()]
    assert not [line for line in lines if line.startswith("dvc repro")]
    commits = [number for number, line in enumerate(lines) if line.startswith("git commit")]
    assert commits and all(lines[number - 1] == "smc mend" for number in commits)


def test_no_stage_names_a_model():
    assert ALL_STAGES["train"]["matrix"] == {"model": "${train.models}"}
    for path in [ROOT / "dvc.yaml", *(notebook_of(name) for name in STAGES)]:
        text = re.sub(r'(\\"models\\": \[[^]]*\]|model = \\"logistic\\")', "", path.read_text())
        assert not [model for model in MODELS if model in text], path.name


def code_list(name):
    "Which list of code a stage rests on: of one model, where it is run once a model."
    return f"{name}_${{item.model}}" if "matrix" in ALL_STAGES[name] else name


def test_an_edit_of_a_model_retrains_no_other():
    lists = write_code(ROOT)
    for model in MODELS:
        used = {path for path in re.findall(r"smc_ml/models/(\w+)\.py", lists[f"train_{model}"])}
        assert model in used and not used & (set(MODELS) - {model}), model


@pytest.mark.parametrize("model, own", [("logistic", set()), ("alpha158", {"alpha158", "oriented"})])
def test_a_model_rests_on_no_baseline_but_its_own(model, own):
    paths = code_hashes("nbs/pipeline/50_train.ipynb", ROOT, model)
    assert {Path(path).stem for path in paths if path.startswith("smc_ml/baselines/")} == own


def test_an_edit_of_a_figure_or_a_page_retrains_no_model():
    lists = [text for name, text in write_code(ROOT).items() if name.startswith("train_")]
    assert lists and not [text for text in lists if "smc_ml/figures/" in text or "smc_ml/reports/" in text]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_the_list_of_its_code_and_on_no_module(name):
    deps = paths_of(STAGES[name]["deps"])
    assert f"artifacts/code/{code_list(name)}.txt" in deps
    assert not any(path.startswith(("smc_ml/", "nbs/")) for path in deps)


def test_the_code_of_every_stage_is_noted():
    assert stage_notebooks(ROOT) == {name: notebook_of(name).relative_to(ROOT).as_posix() for name in STAGES}
    assert set(paths_of(ALL_STAGES["code"]["deps"])) == {"nbs/pipeline", "smc_ml"}
    assert paths_of(ALL_STAGES["code"]["outs"]) == {"artifacts/code"}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_declares_what_it_writes(name):
    stage = STAGES[name]
    assert command_of(stage).split()[2] in paths_of(stage["outs"])
    declared = set().union(*(paths_of(stage.get(kind)) for kind in ("outs", "metrics", "plots")))
    written = re.findall(
        r'write_(?:metrics|tables|table)\(.*f?"([^"]+)"(?:, \{[^}]*\})?\)|save_model\([^,]+, f?"([^"]+)"',
        code_of(name),
    )
    passed = re.findall(r"-p (\w+) (\S+)", command_of(stage))
    for path in filter(None, (path for pair in written for path in pair)):
        for parameter, value in passed:
            path = path.replace(f"{{{parameter}}}", value)
        assert path in declared


def test_dvc_has_one_file_of_metrics_and_draws_no_plots():
    "Its tables fit a terminal that way, and its pages of plots would load scripts from the network."
    found = {name: paths_of(stage.get("metrics")) for name, stage in ALL_STAGES.items()}
    assert {name: paths for name, paths in found.items() if paths} == {"report": {"headline.json"}}
    assert not [name for name, stage in ALL_STAGES.items() if "plots" in stage]


def test_the_metrics_of_dvc_are_numbers_and_fit_120_columns():
    "As `dvc metrics show` lays them out: four spaces between columns, each as wide as its name or number."
    values = {name: -0.123 for name in HEADLINE} | {"trades": 123_456}
    columns = {"Path": "headline.json", **values}
    widths = [max(len(name), len(str(value))) for name, value in columns.items()]
    assert 8 <= len(HEADLINE) <= 12 and sum(widths) + 4 * (len(widths) - 1) <= 120


def test_git_holds_none_of_what_dvc_holds():
    "DVC refuses to run a stage whose output git tracks."
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name, stage in ALL_STAGES.items():
        for out in (out for out in stage["outs"] if isinstance(out, str)):
            path = out.replace("${item.model}", f"({'|'.join(MODELS)})")
            assert not re.search(rf"^{path}(/|$)", tracked.stdout, re.MULTILINE), f"{name}: {out}"


@pytest.mark.parametrize("name", STAGES)
def test_what_a_stage_reads_is_made_by_an_earlier_one(name):
    made = {
        "params.yaml",
        "requirements.lock",
        "reports/notebooks",
        f"artifacts/code/{code_list(name)}.txt",
    }
    for earlier in list(STAGES)[: list(STAGES).index(name)]:
        for kind in ("outs", "metrics"):
            for path in paths_of(STAGES[earlier].get(kind)):
                made.add(str(Path(path).parent) if "${item.model}" in path else path)
    assert paths_of(STAGES[name]["deps"]) <= made


def test_a_stage_that_reads_what_every_model_wrote_tracks_the_list_of_models():
    folders = {str(Path(path).parent) for path in paths_of(STAGES["train"]["outs"])}
    for name, stage in STAGES.items():
        assert bool(folders & paths_of(stage["deps"])) == ("train.models" in stage["params"]), name


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_notebook_goes_to_the_root_of_the_project_before_it_reads_anything(name):
    cells = [cell for cell in cells_of(name) if cell["cell_type"] == "code"]
    tagged = ["parameters" in cell["metadata"].get("tags", []) for cell in cells].index(True)
    assert source_of(cells[tagged + 1]).startswith("enter_project()\n")


def run_by_hand(path: Path) -> None:
    "Run a notebook as JupyterLab does: in a kernel that stands in the notebook's folder."
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()


def test_a_stage_notebook_runs_by_hand_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    place = tmp_path / "nbs/pipeline" / notebook_of("splits").name
    place.parent.mkdir(parents=True)
    shutil.copy2(notebook_of("splits"), place)
    with pytest.raises(
        CellExecutionError, match=r"UserError: no dvc\.yaml in .*: run from inside the project"
    ):
        run_by_hand(place)
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "reports/metrics").mkdir(parents=True)
    simulated = simulate_market(["SIM-A"], "2024-01-01", "2024-02-10", SimulationConfig(edge=0.4))
    labels = events_of(Market({"SIM-A": simulated["SIM-A"].candles}, "5m")).labels
    write_tables({"labels": labels}, tmp_path / "artifacts/labels")
    run_by_hand(place)
    assert len(read_table(tmp_path / "artifacts/splits/counts.parquet")) == 4
    assert json.loads((tmp_path / "reports/metrics/splits.json").read_text())["events"] == len(labels)
    assert [path.name for path in place.parent.iterdir()] == [place.name]


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_notebook_has_no_outputs_exports_definitions_or_long_cells(name):
    cells = [cell for cell in cells_of(name) if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] for cell in cells)
    assert not any(
        isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.For, ast.While, ast.If))
        for node in ast.walk(ast.parse(code_of(name)))
    )
    assert "#| export" not in code_of(name) and "default_exp" not in code_of(name)
    assert max(len(source_of(cell).splitlines()) for cell in cells) <= 10
    assert source_of(cells_of(name)[0]).count("→") >= 1, "the subtitle says what is read and what is written"


@pytest.mark.parametrize("path", sorted((ROOT / "nbs").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_names_its_language_and_stays_small(path):
    notebook = json.loads(path.read_text())
    assert notebook["metadata"]["kernelspec"] == {
        "display_name": "python3",
        "language": "python",
        "name": "python3",
    }
    assert path.stat().st_size < 400_000


LIBRARY = [
    path
    for path in sorted((ROOT / "nbs").rglob("[0-9][0-9]_*.ipynb"))
    if not {"pipeline", "explore", "docs"} & set(path.relative_to(ROOT).parts)
]


@pytest.mark.parametrize(
    "path", LIBRARY, ids=lambda path: path.relative_to(ROOT / "nbs").with_suffix("").as_posix()
)
def test_a_notebook_lies_where_its_module_lies(path):
    module = re.search(r"default_exp ([\w.]+)", path.read_text())[1]
    assert module.split(".") == [*path.relative_to(ROOT / "nbs").parent.parts, path.stem.split("_", 1)[1]]


@pytest.mark.parametrize("folder", sorted({path.parent for path in LIBRARY}), ids=lambda folder: folder.name)
def test_the_numbers_of_a_folder_have_no_gaps(folder):
    numbers = [int(path.name[:2]) for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))]
    assert numbers == list(range(len(numbers)))
