"""The live store on SQLite and on a real PostgreSQL: written once, written whole, and read to the bit."""

import pytest
from postgres import postgres, postgres_url  # noqa: F401
from sqlalchemy import text

from smc_ml.live.store.live_store import LiveStore
from smc_ml.live.store.migrating import NEWEST_MIGRATION, VERSIONS, migrate


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request, tmp_path):
    "Where an empty database is."
    return tmp_path / "live.sqlite" if request.param == "sqlite" else request.getfixturevalue("postgres_url")


def test_opening_makes_the_tables_once(place):
    with LiveStore(place) as store, LiveStore(place) as other:
        assert migrate(store._engine) == NEWEST_MIGRATION
        with store._engine.connect() as connection:
            assert connection.execute(text(f"select version_num from {VERSIONS}")).all() == [
                (NEWEST_MIGRATION,)
            ]
        assert other.last_close() is None and set(other.counts().values()) == {0}
