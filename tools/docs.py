"""Build the documentation: notebooks run once, their pictures kept, one offline site in _docs/site.

`make docs` calls it. A notebook runs again only where its cells, the modules below it, the locked packages
or its data have changed. `python tools/docs.py patterns explore` runs only notebooks with one of these words
in their path; of the others it shows what was kept, or prose and code alone.
"""

import base64
import functools
import hashlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path

import nbformat
import yaml
from api_pages import api_pages
from nbformat import NotebookNode
from notebooks import directives, notebooks_that_run, outputs_of, runnable

ROOT = Path(__file__).resolve().parents[1]
NBS, BUILT = ROOT / "nbs", ROOT / "_docs"
KEPT, PAGES, SITE = BUILT / "executed", BUILT / "pages", BUILT / "site"
FRAME = ROOT / "tools" / "docs.yml"  # theme, extensions and the tree of pages
TEXTS = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
WORKED = ("docs", "explore")  # folders in which slow cells run as well
LONG = 12  # lines of a cell of a worked notebook above which its code is folded
PLOTLY = "application/vnd.plotly.v1+json"
SHOWN = (PLOTLY, "text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain")
ALWAYS = ("pandas", "matplotlib.pyplot", "seaborn", "execnb.shell", "sklearn.linear_model", "smc_ml.candles")
SHIM = "https://unpkg.com/iframe-worker/shim"  # asked for by the search of a site that is opened as a file
MADE = r"library\.md|api/[\w.]+\.md"  # pages that are written here alone
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
FETCHED = r"<(?:script|img|iframe|source|audio|video)\b[^>]*\bsrc|<link\b[^>]*\bhref"
OUTWARD = re.compile(rf"""(?:{FETCHED})\s*=\s*["']?((?:https?:)?//[^"'\s>]+)""")


# --- what runs --------------------------------------------------------------------------------------------


def data_behind(source: str) -> list[str]:
    "What a notebook looks at besides code: the project's last run, the real candles."
    seen = []
    if re.search(r"project_root|artifacts|reports/", source):
        lock = ROOT / "dvc.lock"
        there = (ROOT / "artifacts").is_dir()
        seen.append(hashlib.sha256(lock.read_bytes()).hexdigest() if there and lock.exists() else "no run")
    if "SMC_ML_MARKET" in source:
        folder = Path(os.environ.get("SMC_ML_MARKET", ROOT.parent / "shared" / "market"))
        seen.append(f"real candles {folder.is_dir()}")
    return seen


def key_of(path: Path, cells: list[NotebookNode]) -> str:
    "A digest of everything that the outputs of a notebook rest on."
    from smc_ml.provenance import import_closure, notebook_source

    code = notebook_source(path)
    digest = hashlib.sha256()
    for module in import_closure(code, ROOT):
        digest.update((ROOT / module).read_bytes())
    facts = [cell.source for cell in cells if cell.cell_type == "code"] + data_behind(code)
    facts += [(ROOT / "requirements.lock").read_text(), (ROOT / "tools" / "notebooks.py").read_text()]
    digest.update(json.dumps(facts).encode())
    return digest.hexdigest()[:24]


def place_of(path: Path, key: str) -> Path:
    "Where the executed copy is kept."
    return KEPT / path.relative_to(NBS).with_suffix(f".{key}.ipynb")


def run_notebook(path: Path) -> NotebookNode:
    "A notebook with its outputs; an AssertionError names the cell that fails."
    os.environ["MPLBACKEND"] = "agg"
    os.chdir(path.parent)
    from execnb.shell import CaptureShell

    notebook = nbformat.read(path, as_version=4)
    skipped = {"eval: false"} if path.parent.name in WORKED else {"eval: false", "slow", "notest"}
    shell = CaptureShell(path, mpl_format="png")
    for cell, source in runnable(notebook.cells, frozenset(skipped)):
        cell.outputs = [nbformat.from_dict(output) for output in outputs_of(shell, source, path.name)]
    return notebook


def run_and_keep(path: Path) -> tuple[Path, str]:
    "Run a notebook, keep it under its key, and drop older copies; what went wrong, or nothing."
    place = place_of(path, key_of(path, nbformat.read(path, as_version=4).cells))
    try:
        notebook = run_notebook(path)
    except AssertionError as error:
        return path, f"{error}\n{error.__cause__!r}"
    place.parent.mkdir(parents=True, exist_ok=True)
    for older in place.parent.glob(f"{path.stem}.*.ipynb"):
        older.unlink()
    partial = place.with_suffix(".partial")
    nbformat.write(notebook, partial)
    partial.replace(place)
    return path, ""


def wanted_and_stale(words: list[str]) -> tuple[list[Path], list[Path]]:
    "Notebooks to publish, and those of the wanted ones that have to run."
    paths = [path for path in notebooks_that_run() if path != NBS / "index.ipynb"]
    asked = [path for path in paths if not words or any(word in path.as_posix() for word in words)]
    stale = [p for p in asked if not place_of(p, key_of(p, nbformat.read(p, as_version=4).cells)).exists()]
    return paths, stale


def run_stale(stale: list[Path], workers: int) -> None:
    "Each in a process of its own; all failures are told at the end."
    if not stale:
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(ALWAYS))
    failures = []
    with context.Pool(workers, maxtasksperchild=1) as pool:
        for done, (path, wrong) in enumerate(pool.imap_unordered(run_and_keep, stale), 1):
            print(f"docs: {done} of {len(stale)} run: {path.relative_to(NBS)}", flush=True)
            failures += [f"{path.relative_to(ROOT)}: {wrong}"] * bool(wrong)
    if failures:
        sys.exit("docs: these notebooks failed; mend them and run again\n" + "\n\n".join(failures))


def latest(path: Path) -> NotebookNode:
    "The notebook with kept outputs where they are current, else without any."
    notebook = nbformat.read(path, as_version=4)
    place = place_of(path, key_of(path, notebook.cells))
    if not place.exists():
        return notebook
    kept = {cell.id: cell for cell in nbformat.read(place, as_version=4).cells}
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.id in kept:
            cell.outputs = kept[cell.id].outputs
    return notebook


# --- what is shown ----------------------------------------------------------------------------------------


def page_of(source: Path) -> Path | None:
    "Where a file of the repository is published, seen from the site; None: nowhere."
    if source.parent == ROOT:
        return Path(TEXTS[source.name]) if source.name in TEXTS else None
    if source == NBS / "index.ipynb":
        return Path("readme.md")
    if NBS not in source.parents or source.suffix not in (".md", ".ipynb") or "pipeline" in source.parts:
        return None
    inner = source.relative_to(NBS)
    inner = inner.relative_to("docs") if inner.parts[0] == "docs" else inner
    return inner.with_suffix(".md")


class Page:
    "A page of the site, as it is written."

    def __init__(self, source: Path):
        found = page_of(source)
        if found is None:
            raise ValueError(f"{source}: it has no page: publish .md and .ipynb below nbs/")
        self.source, self.target = source, found
        self.parts: list[str] = []
        self.files: dict[str, bytes] = {}  # beside the page, by name
        self.copied: dict[Path, Path] = {}  # pictures of the repository: from, to

    def relative(self, target: Path) -> str:
        "A place of the site as seen from this page."
        return Path(os.path.relpath(target, self.target.parent)).as_posix()

    def linked(self, match: re.Match[str]) -> str:
        "A link of the repository as a link of the site; what is not published stays as a name."
        picture, text, place, anchor = match[1], match[2], match[3], match[4] or ""
        target = Path(os.path.normpath(self.source.parent / place))
        if picture and target.is_file():
            self.copied[target] = Path("assets") / target.name
            return f"![{text}]({self.relative(Path('assets') / target.name)})"
        published = page_of(target) if target.exists() else None
        if published is None:
            return match[0] if re.fullmatch(MADE, place) else text
        return f"[{text}]({self.relative(published)}{anchor})"

    def prose(self, text: str) -> None:
        "A markdown cell, its links turned, its notes of generators left out."
        fenced = re.split(r"(^```.*?^```)", text, flags=re.MULTILINE | re.DOTALL)
        turned = [part if part.startswith("```") else LINK.sub(self.linked, part) for part in fenced]
        self.parts.append("".join(turned))

    def code(self, source: str, fold: bool) -> None:
        "A code cell without its directives."
        shown = re.sub(r"^#\|.*\n?", "", source, flags=re.MULTILINE).strip("\n")
        block = f"```python\n{shown}\n```"
        if fold:
            block = '??? abstract "Code"\n\n' + re.sub("(?m)^(?=.)", "    ", block)
        self.parts.append(block)

    def output(self, output: NotebookNode, name: str) -> None:
        "One output in the best form that a page without a server shows."
        if output.output_type == "stream":
            if output.name == "stdout":
                self.parts.append(printed(output.text))
            return
        data = output.get("data", {})
        kind = next((kind for kind in SHOWN if kind in data), None)
        if kind == PLOTLY:
            self.parts.append(self.zoomable(data[PLOTLY], name))
        elif kind == "text/html":
            self.parts.append(framed(data[kind]))
        elif kind == "text/markdown":
            self.prose(data[kind])
        elif kind == "text/plain":
            self.parts.append(printed(data[kind]))
        elif kind:
            self.picture(kind, data[kind], name)

    def picture(self, kind: str, data: str, name: str) -> None:
        "A picture as a file beside the page."
        file = f"{name}.{kind.split('/')[1].split('+')[0]}"
        self.files[file] = data.encode() if kind.endswith("xml") else base64.b64decode(data)
        self.parts.append(f"![]({self.target.stem}_files/{file})")

    def zoomable(self, figure: dict, name: str) -> str:
        "A plotly figure, drawn by the site's own copy of the script."
        told = json.dumps([figure["data"], figure.get("layout", {})]).replace("</", "<\\/")
        script = self.relative(Path("assets/plotly.min.js"))
        load = (
            "" if any("plotly.min.js" in part for part in self.parts) else f'<script src="{script}"></script>'
        )
        draw = f'Plotly.newPlot("{name}", ...{told}, {{responsive: true}});'
        return f'<div class="figure" id="{name}"></div>{load}<script>{draw}</script>'

    def notebook(self, notebook: NotebookNode, pages: bool) -> None:
        "All cells that are for readers; pages: long code is folded, since one came to see."
        for number, cell in enumerate(notebook.cells):
            said = directives(cell.source) if cell.cell_type == "code" else set()
            if cell.cell_type == "markdown":
                self.prose(cell.source)
            elif cell.source.strip() and not said & {"hide"} and not any("default_exp" in s for s in said):
                if "echo: false" not in said:
                    self.code(cell.source, pages and cell.source.count("\n") >= LONG)
                for place, output in enumerate(cell.get("outputs", ())):
                    self.output(output, f"{self.target.stem}-{number:02}-{place}")

    def write(self) -> None:
        "The page with the files beside it."
        place = PAGES / self.target
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("\n\n".join(self.parts) + "\n", encoding="utf-8")
        for name, content in self.files.items():
            beside = place.with_name(f"{place.stem}_files") / name
            beside.parent.mkdir(exist_ok=True)
            beside.write_bytes(content)
        for source, target in self.copied.items():
            (PAGES / target).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, PAGES / target)


def printed(text: str) -> str:
    "What was printed, as it was."
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip()
    return f'<div class="output"><pre>{escape(plain, quote=False)}</pre></div>' if plain else ""


def framed(html: str) -> str:
    "A table or a chart that scrolls in its own frame."
    bare = re.sub(r"<style scoped>.*?</style>\s*", "", html, flags=re.DOTALL)
    return f'<div class="output">{bare.strip()}</div>'


# --- the site ---------------------------------------------------------------------------------------------


def title_of(text: str, default: str) -> str:
    "The first heading."
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return found[1].strip() if found else default


def write_pages(paths: list[Path]) -> dict[str, str]:
    "Every page of notebooks and texts; titles by the page's place."
    texts = [*sorted((NBS / "docs").glob("*.md")), *(ROOT / name for name in TEXTS)]
    titles = {}
    for source in [*paths, *texts]:
        page = Page(source)
        if source.suffix == ".md":
            page.prose(source.read_text(encoding="utf-8"))
        else:
            page.notebook(latest(source), source.parent.name in WORKED)
        page.write()
        titles[page.target.as_posix()] = title_of("\n\n".join(page.parts), page.target.stem)
    return titles


def write_api() -> dict[str, str]:
    "The pages of the API; titles by place."
    titles = {}
    for target, text in api_pages(ROOT / "smc_ml").items():
        (PAGES / target).parent.mkdir(parents=True, exist_ok=True)
        (PAGES / target).write_text(text, encoding="utf-8")
        titles[target] = title_of(text, target)
    return titles


def library_page(titles: dict[str, str]) -> str:
    "The map of the library: the notebooks of each folder in reading order."
    folders: dict[str, list[str]] = {}
    for target, title in titles.items():
        folder = Path(target).parent.as_posix()
        if re.match(r"\d\d_", Path(target).name) and folder not in (".", "explore"):
            folders.setdefault(folder, []).append(f"[{title}]({target})")
        elif re.match(r"\d\d_", Path(target).name) and (NBS / target).with_suffix(".ipynb").exists():
            if folder == ".":
                folders.setdefault("smc_ml", []).append(f"[{title}]({target})")
    rows = [f"## `{folder}`\n\n{' · '.join(links)}" for folder, links in folders.items()]
    intro = "Each notebook makes one module: prose, definition, proof, and a picture where one would look."
    return "\n\n".join(["# The library, notebook by notebook", intro, *rows]) + "\n"


def filled(tree: list, titles: dict[str, str]) -> Iterator:
    "The tree of pages with `explore/*` and `api/*` replaced by what is there."
    for entry in tree:
        if isinstance(entry, dict):
            yield {name: list(filled(v, titles)) if isinstance(v, list) else v for name, v in entry.items()}
        elif entry.endswith("/*"):
            yield from (
                {titles[page].strip("`"): page} for page in sorted(titles) if page.startswith(entry[:-1])
            )
        else:
            yield entry


def write_site(titles: dict[str, str]) -> Path:
    "The configuration of the site, its library page, scripts and styles."
    (PAGES / "library.md").write_text(library_page(titles), encoding="utf-8")
    (PAGES / "assets").mkdir(exist_ok=True)
    shutil.copyfile(ROOT / "tools" / "docs.css", PAGES / "assets" / "docs.css")
    if any("plotly.min.js" in page.read_text(encoding="utf-8") for page in PAGES.rglob("*.md")):
        from plotly.offline import get_plotlyjs

        (PAGES / "assets" / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")
    frame = yaml.safe_load(FRAME.read_text(encoding="utf-8"))
    frame["nav"] = list(filled(frame["nav"], titles))
    frame |= {"docs_dir": PAGES.name, "site_dir": SITE.name}
    place = BUILT / "mkdocs.yml"
    place.write_text(yaml.safe_dump(frame, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return place


def keep_at_home(site: Path) -> None:
    "Let the pages take the script of the search from the site itself."
    shutil.copyfile(ROOT / "tools" / "iframe_worker.js", site / "assets" / "iframe_worker.js")
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        own = Path(os.path.relpath(site / "assets" / "iframe_worker.js", page.parent)).as_posix()
        page.write_text(text.replace(SHIM, own), encoding="utf-8")


@functools.cache
def anchors(page: Path) -> frozenset[str]:
    "The places of a built page that a link may name."
    return frozenset(re.findall(r"""\b(?:id|name)=["']?([^"'\s>]+)""", page.read_text(encoding="utf-8")))


def wrong_links(site: Path) -> list[str]:
    "Links of the built pages that lead nowhere, and what a page would fetch from elsewhere."
    wrong = []
    for page in sorted(site.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        name = page.relative_to(site).as_posix()
        wrong += [f"{name} would fetch {address}" for address in OUTWARD.findall(text)]
        text = re.sub(r"(?s)<script\b.*?</script>|srcdoc=\"[^\"]*\"", "", text)
        for link in set(re.findall(r"""<a\b[^>]*?\bhref=["']?([^"'\s>]+)""", text)):
            place, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:|//", link) or page.name == "404.html":
                continue
            target = Path(os.path.normpath(page.parent / place)) if place else page
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file():
                wrong.append(f"{name} leads to {link}, which is not there")
            elif anchor and target.suffix == ".html" and anchor not in anchors(target):
                wrong.append(f"{name} leads to {link}, which has no such place")
    return wrong


def main(words: list[str]) -> None:
    "Run what is stale, write the pages, build the site, and look for links that lead nowhere."
    paths, stale = wanted_and_stale(words)
    run_stale(stale, int(os.environ.get("DOCS_WORKERS", "2")))
    shutil.rmtree(PAGES, ignore_errors=True)
    titles = write_api() | write_pages(paths)
    place = write_site(titles)
    zensical = os.environ.get("ZENSICAL", str(BUILT / ".venv" / "bin" / "zensical"))
    shutil.rmtree(SITE, ignore_errors=True)
    subprocess.run([zensical, "build", "--clean", "--config-file", str(place)], check=True)
    keep_at_home(SITE)
    if wrong := wrong_links(SITE):
        more = f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else ""
        sys.exit("docs: the site is built, but\n  " + "\n  ".join(wrong[:20]) + more)
    print(f"docs: {len(titles) + 1} pages; open {(SITE / 'index.html').relative_to(ROOT)}")


if __name__ == "__main__":
    main(sys.argv[1:])
