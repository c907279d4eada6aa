"""The first tables: the market, what was decided and said of it, what was done, the account, a restart's states."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

KINDS: dict[str, tuple[Any, bool]] = {
    "text": (sa.Text, False),
    "time": (sa.BigInteger, False),
    "no_time": (sa.BigInteger, True),
    "whole": (sa.BigInteger, False),
    "truth": (sa.Boolean, False),
    "number": (sa.Double, True),
    "numbers": (sa.Text, False),
    "no_text": (sa.Text, True),
    "bytes": (sa.LargeBinary, False),
}
DECISION = {"digest": "decisions.digest"}
TABLES = [  # name, key, columns, foreign key, indexed beside the book, whether rows are numbered
    (
        "candles",
        "symbol timeframe open_time",
        "text symbol timeframe, time open_time, number open high low close volume, numbers more",
        {},
        "",
        False,
    ),
    ("feature_lists", "digest", "text digest names, whole size", {}, "", False),
    (
        "feature_rows",
        "symbol known_at",
        "text symbol, time known_at, text digest, bytes row",
        {"digest": "feature_lists.digest"},
        "",
        False,
    ),
    (
        "decisions",
        "digest",
        "text digest key symbol, time known_at, whole event_id direction, text kind timeframe, "
        "time formed_at pattern_known_at, number top bottom zone_stop strength",
        {},
        "",
        False,
    ),
    (
        "predictions",
        "prediction_id",
        "text prediction_id key digest model_version symbol timeframe, time known_at, text role, "
        "number probability low high expected_r disagreement, numbers models, text reason feature_hash",
        DECISION,
        "known_at",
        True,
    ),
    (
        "outcomes",
        "prediction_id",
        "text prediction_id, time known_at, no_time entry_at exit_at, text outcome, truth won, "
        "number realised_r",
        {"prediction_id": "predictions.prediction_id"},
        "exit_at",
        False,
    ),
    (
        "forecasts",
        "symbol known_at model_version model target",
        "text symbol, time known_at, text model_version model target, numbers values",
        {},
        "",
        False,
    ),
    (
        "signals",
        "key",
        "text key digest symbol timeframe, time known_at, text model_version side reason, number confidence, "
        "text strength, number expected_r low high disagreement, numbers returns, number risk, "
        "text feature_hash",
        DECISION,
        "known_at",
        True,
    ),
    (
        "orders",
        "order_id",
        "text order_id, no_text signal_key, text symbol action, time known_at, number position zone_stop, "
        "text reason, number probability expected_r size",
        {"signal_key": "signals.key"},
        "known_at",
        True,
    ),
    (
        "fills",
        "order_id what time",
        "text order_id symbol, time time known_at, text what, "
        "number units price fee slippage funding profit, text reason",
        {"order_id": "orders.order_id"},
        "known_at",
        True,
    ),
    ("accounts", "known_at", "time known_at, number equity cash drawdown exposure", {}, "", False),
    (
        "holdings",
        "known_at place",
        "time known_at, whole place, text symbol order_id, time entry_at, "
        "number entry units stop target margin, whole bars",
        {"known_at": "accounts.known_at"},
        "",
        False,
    ),
    ("notices", "known_at source level what", "time known_at, text source level what", {}, "", True),
    (
        "model_events",
        "known_at model_version role what",
        "time known_at, text model_version role what why",
        {},
        "",
        True,
    ),
    (
        "closes",
        "known_at",
        "time known_at, whole predictions outcomes signals orders fills accounts holdings, text digest",
        {},
        "",
        False,
    ),
    ("states", "name", "text name, time known_at, text digest, bytes content", {}, "", False),
]


def _columns(told: str) -> list[sa.Column]:
    columns = []
    for part in told.split(", "):
        word, *names = part.split()
        kind, empty = KINDS[word]
        columns += [sa.Column(name, kind(), nullable=empty) for name in names]
    return columns


def _keys(name: str, key: list[str], numbered: bool) -> list:
    if not numbered:
        return [sa.PrimaryKeyConstraint(*key, name=f"pk_{name}")]
    unique = sa.UniqueConstraint(*key, name="_".join(["uq", name, *key]))
    return [sa.PrimaryKeyConstraint("number", name=f"pk_{name}"), unique]


def upgrade() -> None:
    "All tables, those that others point to first."
    for name, key, columns, foreign, indexed, numbered in TABLES:
        number = sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), nullable=False)
        parts: list[Any] = [number] if numbered else []
        parts += [sa.Column("book", sa.Text(), nullable=False), *_columns(columns)]
        parts += _keys(name, ["book", *key.split()], numbered)
        for column, target in foreign.items():
            pointed = [target.partition(".")[0] + ".book", target]
            parts.append(sa.ForeignKeyConstraint(["book", column], pointed, name=f"fk_{name}_book_{column}"))
        op.create_table(name, *parts)
        if indexed:
            op.create_index(f"ix_{name}_book_{indexed}", name, ["book", indexed])


def downgrade() -> None:
    "No tables."
    for name, *_ in reversed(TABLES):
        op.drop_table(name)
