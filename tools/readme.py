"""Write README.md from nbs/index.ipynb; with --check only say whether it is current (exit 1 if not)."""
import os, re, sys
from pathlib import Path
import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK, README = ROOT/"nbs"/"index.ipynb", ROOT/"README.md"
FIRST_LINE = "<!-- Generated from nbs/index.ipynb by `make readme`: edit the notebook, not this file. -->\n\n"
HIDDEN = re.compile(r"^#\|\s*(hide|default_exp|eval:\s*false\s*\n#\|\s*hide)\b", re.MULTILINE)
DIRECTIVE = re.compile(r"^#\|.*\n?", re.MULTILINE)
TARGET = re.compile(r"""(\]\(|\b(?:src|href)=")(?![a-z]+:|[#/])([^)\s"]+)""")

def from_root(link: re.Match) -> str:
    "A link as seen from the notebook's folder -> as seen from the root."
    return link[1] + os.path.normpath(os.path.join(NOTEBOOK.parent.name, link[2])).replace(os.sep, "/")

def kept(cell: nbformat.NotebookNode) -> bool: return cell.cell_type == "markdown" or bool(cell.source.strip()) and not HIDDEN.search(cell.source)

def for_readers(cell: nbformat.NotebookNode) -> nbformat.NotebookNode:
    "The cell without directives, progress bars and pictures, its links seen from the root."
    if cell.cell_type == "markdown": return cell | {"source": TARGET.sub(from_root, cell.source)}
    plain = [output for output in cell.outputs if output.get("name") != "stderr" and output.output_type != "error"]
    if any(kind.startswith("image/") for output in plain for kind in output.get("data", {})):
        sys.exit("nbs/index.ipynb: a stored picture cannot go into README.md: save it as a file, link to it, and clear the output (make clean)")
    for output in plain: output.get("data", {}).pop("text/html", None)
    return cell | {"source": DIRECTIVE.sub("", cell.source).strip(), "outputs": plain}

def readme() -> str:
    "The whole text of README.md."
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = [nbformat.from_dict(for_readers(cell)) for cell in notebook.cells if kept(cell)]
    notebook.metadata = nbformat.from_dict({"language_info": {"name": "python"}})
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    return FIRST_LINE + re.sub(r"\n{3,}```", "\n\n```", text.strip()) + "\n"

if __name__ == "__main__":
    if not NOTEBOOK.exists(): sys.exit("nbs/index.ipynb is missing: README.md is made from it")
    text = readme()
    if "--check" not in sys.argv[1:]: README.write_text(text, encoding="utf-8")
    elif not README.exists() or README.read_text(encoding="utf-8") != text: sys.exit("README.md differs from nbs/index.ipynb: run make readme")
