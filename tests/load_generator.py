"""Many clients at once, each with a connection of its own, over plain sockets of asyncio."""

import asyncio
import time
from typing import NamedTuple
from urllib.parse import urlsplit


class Answer(NamedTuple):
    "What a client got."

    status: int  # 0: no answer
    seconds: float
    headers: dict[str, str]
    why: str = ""  # there is no answer


async def _one(
    host: str, port: int, request: bytes, room: asyncio.Semaphore, gate: asyncio.Barrier
) -> Answer:
    "One client: connect, wait for all, ask, read."
    begun = time.perf_counter()
    try:
        async with room:
            reader, writer = await asyncio.open_connection(host, port)
        await gate.wait()
        begun = time.perf_counter()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:])}
        await reader.readexactly(int(headers.get("content-length", 0)))
        writer.close()
        return Answer(int(head[0].split()[1]), time.perf_counter() - begun, headers)
    except (OSError, asyncio.IncompleteReadError) as error:
        return Answer(0, time.perf_counter() - begun, {}, type(error).__name__)


async def _all(address: str, path: str, clients: int, token: str) -> list[Answer]:
    "All connect, a hundred at a time; then all ask at once."
    place = urlsplit(address)
    lines = [f"GET {path} HTTP/1.1", f"Host: {place.netloc}", f"Authorization: Bearer {token}"]
    request = "\r\n".join([*lines, "", ""]).encode()
    room, gate = asyncio.Semaphore(100), asyncio.Barrier(clients)
    where = place.hostname or "", place.port or 0
    return await asyncio.gather(*(_one(*where, request, room, gate) for _ in range(clients)))


def crowd(address: str, path: str, clients: int, token: str) -> list[Answer]:
    "The answers that clients get who ask at once."
    return asyncio.run(_all(address, path, clients, token))
