"""A real PostgreSQL for tests: started on a free port of the loopback, gone afterwards.

    from postgres import postgres_url  # a fixture: the URL of an empty database

Skipped, with the reason, where there is no server (Debian: apt-get install postgresql).
"""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest


def _binaries() -> Path | None:
    "The folder of initdb and its like."
    found = [
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name),
        *(Path(place).resolve().parent for place in [shutil.which("initdb")] if place),
    ]
    return next((path for path in reversed(found) if (path / "pg_ctl").is_file()), None)


def _account() -> dict[str, Any]:
    "Who runs it: the server refuses root."
    if os.geteuid():
        return {}
    try:
        own = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL refuses to run as root, and there is no account postgres")
    return {"user": own.pw_uid, "group": own.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Server(NamedTuple):
    "A server that can be stopped and started again."

    binaries: Path
    folder: Path
    port: int
    account: dict[str, Any]

    def run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [self.binaries / program, *words],
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            **self.account,
        )
        assert done.returncode == 0, done.stderr

    def start(self, durable: bool = False) -> None:
        "Without waiting for the disk, unless it is to be durable: processes crash in tests, machines do not."
        fsync = "on" if durable else "off"
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.folder} -c fsync={fsync}"
        log = str(self.folder / "log")
        self.run("pg_ctl", "-w", "-D", str(self.folder / "data"), "-l", log, "-o", options, "start")

    def stop(self, mode: str = "immediate") -> None:
        self.run("pg_ctl", "-w", "-D", str(self.folder / "data"), "-m", mode, "stop")

    def database(self, name: str) -> str:
        "The URL of a new, empty database."
        self.run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", name)
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    "A running server."
    if (binaries := _binaries()) is None:
        pytest.skip("there is no PostgreSQL here (Debian: apt-get install postgresql)")
    account = _account()
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if account:
        os.chown(folder, account["user"], account["group"])
    server = Server(binaries, folder, _free_port(), account)
    server.run("initdb", "-A", "trust", "-U", "postgres", "-E", "UTF8", "-N", "-D", str(folder / "data"))
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres: Server, request: pytest.FixtureRequest) -> str:
    "The URL of an empty database of the test's own."
    digits = "".join(letter if letter.isalnum() else "_" for letter in request.node.name.lower())
    return postgres.database(f"{digits[:50]}_{os.urandom(3).hex()}")
