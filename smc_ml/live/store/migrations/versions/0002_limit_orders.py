"""The price of an order that rests in the book: none of those that enter at the next open."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    "Orders with the price at which they rest; NULL for those of before, which rested nowhere."
    op.add_column("orders", sa.Column("limit_price", sa.Double(), nullable=True))


def downgrade() -> None:
    "Without it."
    op.drop_column("orders", "limit_price")
