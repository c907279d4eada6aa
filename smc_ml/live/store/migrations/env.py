"""How alembic runs the migrations of the live store: in the transaction that it is given."""

from alembic import context

from smc_ml.live.store.migrating import VERSIONS
from smc_ml.live.store.tables import LIVE_TABLES

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=LIVE_TABLES,
    version_table=VERSIONS,
)
with context.begin_transaction():
    context.run_migrations()
