"""Write the tables and numbers of nbs/index.ipynb and, from that notebook, README.md; numbers of others
and the names that editors read too.

With --check only say whether both are current (exit 1 if not).
"""

import os
import re
import sys
import tomllib
from pathlib import Path

import claims
import names
import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK, README = ROOT / "nbs" / "index.ipynb", ROOT / "README.md"
FIRST_LINE = "<!-- Generated from nbs/index.ipynb by `make readme`: edit the notebook, not this file. -->\n\n"
HIDDEN = re.compile(r"^#\|\s*(hide|default_exp|eval:\s*false\s*\n#\|\s*hide)\b", re.MULTILINE)
DIRECTIVE = re.compile(r"^#\|.*\n?", re.MULTILINE)
TARGET = re.compile(r"""(\]\(|\b(?:src|href)=")(?![a-z]+:|[#/])([^)\s"]+)""")


def from_root(link: re.Match) -> str:
    "A link as seen from the notebook's folder -> as seen from the root."
    path = os.path.normpath(os.path.join(NOTEBOOK.parent.name, link[2]))
    return link[1] + path.replace(os.sep, "/")


def kept(cell: nbformat.NotebookNode) -> bool:
    "Whether readers see a cell."
    return cell.cell_type == "markdown" or bool(cell.source.strip()) and not HIDDEN.search(cell.source)


def for_readers(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "The cell without directives, progress bars and pictures, its links seen from the root."
    if cell.cell_type == "markdown":
        return cell | {"source": TARGET.sub(from_root, cell.source)}
    streams = [output for output in cell.outputs if output.get("name") != "stderr"]
    plain = [output for output in streams if output.output_type != "error"]
    if any(kind.startswith("image/") for output in plain for kind in output.get("data", {})):
        remedy = "save it as a file, link to it, and clear the output (make clean)"
        sys.exit(f"nbs/index.ipynb: a stored picture cannot go into README.md: {remedy}")
    for output in plain:
        output.get("data", {}).pop("text/html", None)
    return cell | {"source": DIRECTIVE.sub("", cell.source).strip(), "outputs": plain}


def headline_of(path: Path) -> tuple[str, str]:
    "Title and subtitle of a notebook."
    cells = nbformat.read(path, as_version=4).cells
    text = "".join(cell.source + "\n" for cell in cells if cell.cell_type == "markdown")
    return re.search(r"^# (.+)$", text, re.MULTILINE)[1], re.search(r"^> (.+)$", text, re.MULTILINE)[1]


def floors() -> list[str]:
    "Packages from the lowest floor to the highest, as pyproject.toml has them."
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = [layer for contract in contracts for layer in contract.get("layers", ())]
    return [name for layer in reversed(layers) for name in re.findall(r"[\w.]+", layer)]


def floor_of(folder: Path) -> tuple[int, int, str]:
    "Where a folder of notebooks stands in the map: the root first, packages floor by floor, then the rest."
    module = ".".join(["smc_ml", *folder.relative_to(ROOT / "nbs").parts])
    order = floors()
    within = [order.index(name) for name in order if module == name or module.startswith(f"{name}.")]
    own = order.index(module) if module in order else 0
    return (-1 if module == "smc_ml" else max(within, default=len(order)), own, module)


def notebook_map() -> str:
    "One row for each folder: its notebooks by title, in reading order."
    folders: dict[Path, list[str]] = {}
    for path in sorted((ROOT / "nbs").rglob("[0-9][0-9]_*.ipynb")):
        if path.parent.name != "pipeline" and ".ipynb_checkpoints" not in path.parts:
            link = f"[{headline_of(path)[0]}]({path.relative_to(NOTEBOOK.parent).as_posix()})"
            folders.setdefault(path.parent, []).append(link)
    rows = [
        f"| `{folder.relative_to(ROOT).as_posix()}/` | {' · '.join(folders[folder])} |"
        for folder in sorted(folders, key=floor_of)
    ]
    return "\n".join(["| folder | notebooks |", "|---|---|", *rows])


def stage_map() -> str:
    "One row for each stage: what it reads and what it writes."
    paths = sorted((ROOT / "nbs" / "pipeline").glob("[0-9][0-9]_*.ipynb"))
    rows = [f"| `{path.stem}` | {headline_of(path)[1]} |" for path in paths]
    return "\n".join(["| stage | reads → writes |", "|---|---|", *rows])


def form_map() -> str:
    "One row for each form of a file of candles."
    from smc_ml.data.sources.forms import form_table

    table = form_table()
    head, *rows = [f"| {' | '.join(line)} |" for line in (list(table.columns), *table.to_numpy().tolist())]
    return "\n".join([head, "|" + "---|" * table.shape[1], *rows])


MAPS = {"notebooks": notebook_map, "stages": stage_map, "forms": form_map}


def with_maps(text: str) -> str:
    "A cell with the table below each `<!-- name -->` written anew."
    for name, table in MAPS.items():
        before, mark, after = text.partition(f"<!-- {name} -->")
        if mark:
            text = f"{before}{mark}\n{table()}" + re.sub(r"^(\n\|.*)*", "", after)
    return text


def index_notebook() -> nbformat.NotebookNode:
    "The index notebook with its maps as they should be."
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = claims.renewed(with_maps(cell.source))
    return notebook


def readme() -> str:
    "The whole text of README.md."
    notebook = index_notebook()
    notebook.cells = [nbformat.from_dict(for_readers(cell)) for cell in notebook.cells if kept(cell)]
    notebook.metadata = nbformat.from_dict({"language_info": {"name": "python"}})
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    return FIRST_LINE + re.sub(r"\n{3,}```", "\n\n```", text.strip()) + "\n"


def main(check: bool) -> None:
    "Write both files, or only check them."
    if not NOTEBOOK.exists():
        sys.exit("nbs/index.ipynb is missing: README.md is made from it")
    try:
        others = [each for each in claims.renewed_files() if each[0] != NOTEBOOK]
        others += names.renewed_names()
        notebook, text = index_notebook(), readme()
    except claims.ClaimError as error:
        sys.exit(str(error))
    if old := [str(path.relative_to(ROOT)) for path, before, after in others if before != after]:
        if check:
            sys.exit(f"what is generated in {', '.join(old)} is no longer current: make readme")
        for path, _, after in others:
            path.write_text(after, encoding="utf-8")
    stale = notebook != nbformat.read(NOTEBOOK, as_version=4)
    if not check:
        if stale:
            nbformat.write(notebook, NOTEBOOK)
        README.write_text(text, encoding="utf-8")
    elif stale or not README.exists() or README.read_text(encoding="utf-8") != text:
        sys.exit("the maps of nbs/index.ipynb or README.md are not current: run make readme")


if __name__ == "__main__":
    main("--check" in sys.argv[1:])
