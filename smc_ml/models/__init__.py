"""Models: what they learn from, how each is made, trained, stored and loaded."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator


def load(folder: str | os.PathLike) -> BaseEstimator:
    "The model in a folder, as it was saved; a `ModelError` where it is missing, changed, or would run code."
    from smc_ml.models.saving import load_model

    return load_model(folder)
