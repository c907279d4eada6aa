"""Every notebook of the library and of nbs/explore runs from top to bottom; stage notebooks run in the end-to-end test."""

import pytest
from nbdev import test as nbtest
from nbdev.config import get_config
from nbdev.doclinks import nbglob

NOTEBOOKS = sorted(path for path in nbglob(as_path=True) if not (path.parent / ".notest").exists())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    passed, _ = nbtest.test_nb(
        path.absolute(), skip_flags=get_config().tst_flags.split(), basepath=get_config().config_path
    )
    assert passed
