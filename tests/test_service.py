"""The service over a real database: what it tells, and whom, what it bears, what a browser shows of it."""

import json
import logging
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pandas as pd
import pytest
import yaml
from browser import Browser
from live_service import BEARER, STEP, TOKEN, Process, decision_at, filled, serving, signal_of, write_close
from load_generator import crowd

from smc_ml.live.store.live_store import LiveStore
from smc_ml.service.config import ServiceConfig
from smc_ml.service.dashboard import ALARMS, PANELS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    "A database of ten days."
    with LiveStore(tmp_path_factory.mktemp("live") / "live.sqlite") as store:
        filled(store)
        yield store


@pytest.fixture(scope="module")
def served(store):
    "Address, store, process and service."
    process = Process()
    with serving(store, process) as (address, service):
        yield address, store, process, service


def test_answers_are_what_the_database_holds(served):
    address, store, _, _ = served
    with httpx.Client(base_url=address, headers=BEARER) as client:
        told = {
            name: client.get(f"/api/{name}").json() for name in ("state", "signals", "positions", "equity")
        }
        models = client.get("/api/models").json()
    signals, account = store.signals(newest=50)[::-1], store.account()
    assert [row["key"] for row in told["signals"]["signals"]] == [signal.key for signal in signals]
    assert told["signals"]["signals"][0]["confidence"] == signals[0].confidence
    assert told["signals"]["signals"][0]["known_at"] == signals[0].known_at.isoformat()
    assert told["positions"]["account"]["equity"] == told["state"]["account"]["equity"] == account.equity
    assert told["positions"]["account"]["positions"][0]["stop"] == account.positions[0].stop
    assert told["equity"]["equity"][-1]["equity"] == store.equity()["equity"].iloc[-1]
    assert told["state"]["predictions"] == store.counts()["predictions"] > 30
    assert told["state"]["last_close"] == store.last_close().isoformat()
    assert told["state"]["score"]["accuracy_low"] < told["state"]["score"]["accuracy"]
    said = {row["target"]: row["model"] for row in told["state"]["forecasts"]}
    assert said == {"1h": "patchtst", "4h": "patchtst", "12h": "", "1d": "", "1w": ""}
    assert [row["state"] for row in models["models"]] == ["trained"] * 3


def test_who_has_no_token_learns_nothing(served):
    address, *_ = served
    closed = [
        "/",
        "/metrics",
        "/api/state",
        "/api/events",
        "/api/chart?symbol=SIM-A",
        "/docs",
        "/openapi.json",
        "/x",
    ]
    with httpx.Client(base_url=address) as client:
        for path in closed:
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": f"smc_ml={TOKEN}"}):
                answer = client.get(path, headers=headers)
                assert answer.status_code == (303 if path == "/" else 401), path
                assert "SIM" not in answer.text and answer.headers["x-content-type-options"] == "nosniff"
        assert client.get("/health").json() == {"alive": True}
        assert client.get("/ready").json() == {"ready": True}
        assert client.get(f"/api/state?token={TOKEN}").status_code == 401
        assert client.post("/login", data={"token": "wrong"}).status_code == 401
        foreign = client.post("/login", data={"token": TOKEN}, headers={"Origin": "http://evil.example"})
        assert foreign.status_code == 403
        answer = client.post("/login", data={"token": TOKEN}, headers={"Origin": address})
        cookie = answer.headers["set-cookie"]
        assert answer.status_code == 303 and TOKEN not in cookie
        assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
        page = client.get("/")
        assert page.status_code == 200 and "script-src 'self'" in page.headers["content-security-policy"]
        assert "unsafe-inline" not in page.headers["content-security-policy"]
        order = {"confirm": "stop trading"}
        assert (
            client.post("/api/kill", json=order, headers={"Origin": "http://evil.example"}).status_code == 403
        )
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 421


def test_whatever_is_sent_is_answered_with_4xx(served, caplog):
    address, *_ = served
    predict = "/api/predict"
    bodies = [b"", b"{", b"null", b"[1]", b"\xff\xfe", b'{"symbol": "S", "direction": 3}', b"[" * 5000]
    bodies += [
        b'{"symbol": "S", "direction": 1, "rows": [[NaN]]}',
        b'{"symbol": "S", "direction": 1, "x": 1}',
    ]
    bodies += [b'{"symbol": "S", "direction": 1, "rows": [[1e999]]}', b'{"symbol": 5, "direction": 1}']
    paths = [
        "/assets/..%2f..%2fconfig.py",
        "/assets/../live.html",
        "/assets/live.html",
        "//etc/passwd",
        "/api/%00",
    ]
    paths += ["/api/chart?symbol=../../x", "/api/signals?limit=0", "/api/signals?limit=x", "/api/chart"]
    with httpx.Client(base_url=address, headers=BEARER) as client, caplog.at_level(logging.INFO, "smc_ml"):
        for body in bodies:
            answer = client.post(predict, content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code in (400, 422), body[:60]
            assert "error" in answer.json() and b"Traceback" not in answer.content
        for path in paths:
            assert 400 <= client.get(path).status_code < 500, path
        large = b"0" * 1_000_001
        assert client.post(predict, content=large).status_code == 413
        assert client.post(predict, content=iter([large[:600_000]] * 2)).status_code == 413
        assert client.put(predict).status_code == 405
        assert (
            client.post(predict, json={"symbol": "S", "direction": 1}).json()["predictions"][0]["signal"]
            == "NEUTRAL"
        )
    assert TOKEN not in caplog.text


def test_a_process_that_is_not_ready_and_a_rate_that_is_too_high(store):
    process = Process()
    process.state = process.state._replace(ready=False, why="no candles", failed={"lstm": "no number"})
    with serving(store, process, ServiceConfig(port=0, burst=6, rate=0.001)) as (address, _):
        with httpx.Client(base_url=address, headers=BEARER) as client:
            assert client.get("/ready").status_code == 503
            assert client.get("/api/state").json()["why"] == "no candles"
            states = {row["name"]: row["state"] for row in client.get("/api/models").json()["models"]}
            assert states == {"ensemble": "failed", "lstm": "failed", "patchtst": "trained"}
            text = client.get("/metrics").text
            assert 'smc_model_up{model="lstm"} 0.0' in text and "smc_ready 0.0" in text
            answers = [client.get("/health") for _ in range(4)]
            assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
            assert answers[-1].headers["retry-after"] == "1"


def crowded(store, clients):
    "How many got which status, and how long they waited, with the service well afterwards."
    with serving(store, config=ServiceConfig(port=0, rate=None, concurrent=16)) as (address, service):
        answers = crowd(address, "/api/signals", clients, TOKEN)
        assert all("retry-after" in answer.headers for answer in answers if answer.status == 503)
        counts = pd.Series([answer.status for answer in answers]).value_counts().to_dict()
        waited = sorted(answer.seconds for answer in answers)
        with httpx.Client(base_url=address, headers=BEARER) as client:
            assert client.get("/api/state").status_code == 200
        assert service_is_empty(service)
    return counts, waited


def service_is_empty(service):
    "Whether no place is held by a request that is over."
    return service.metrics.value("smc_requests_total", path="/api/state", status="200") == 1


def test_a_crowd_is_answered_or_told_to_come_again(store):
    counts, _ = crowded(store, 200)
    assert set(counts) == {200, 503} and sum(counts.values()) == 200


@pytest.mark.slow
def test_a_thousand_clients(store):
    counts, waited = crowded(store, 1000)
    print(f"{counts}; waited: median {waited[500]:.2f} s, p99 {waited[990]:.2f} s")
    assert set(counts) <= {200, 503} and sum(counts.values()) == 1000


def test_events_come_once_and_end_with_their_reader(served):
    address, store, _, service = served
    close = store.last_close() + STEP
    with httpx.Client(base_url=address, headers=BEARER, timeout=20) as client:
        with client.stream("GET", "/api/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["cache-control"] == "no-store"
            lines = answer.iter_lines()
            assert next(lines) == "retry: 2000"
            time.sleep(0.3)
            write_close(store, close, 10_500.0, signal_of(decision_at("SIM-B", close, 77)))
            seen = []
            while len(seen) < 4:
                if line := next(lines):
                    seen.append(line)
        assert [line for line in seen if line.startswith("event")] == ["event: signal", "event: close"]
        assert json.loads(seen[1].removeprefix("data: "))["symbol"] == "SIM-B"
        until = time.monotonic() + 10
        while len(service.broadcast) and time.monotonic() < until:
            time.sleep(0.05)
        assert not len(service.broadcast)


# the page


def cells(page, place):
    "The texts of a table on the page."
    texts = "row => [...row.children].map(cell => cell.textContent)"
    return page.evaluate(f"[...document.querySelectorAll('#{place} tbody tr')].map({texts})")


def tiles(page, place):
    "Names and values of tiles."
    found = (
        f"[...document.querySelectorAll('#{place} .tile')].map(t => [...t.children].map(c => c.textContent))"
    )
    return {parts[0]: parts[1] for parts in page.evaluate(found)}


def test_the_page_shows_what_the_database_holds(store, tmp_path):
    process = Process()
    with Browser() as browser, serving(store, process) as (address, _):
        page = browser.open(address)
        assert page.evaluate("location.pathname") == "/login"
        page.evaluate(f"document.querySelector('[name=token]').value = {json.dumps(TOKEN)}")
        page.click(".login button")
        page.wait_for("document.body?.dataset.listening === 'yes' && document.body.dataset.looks > 0")
        page.wait_for("document.querySelector('#chart')?.dataset.ready === 'yes'")
        account, signal = store.account(), store.signals(newest=1)[0]
        shown = tiles(page, "tiles")
        assert shown["equity"] == f"{account.equity:,.2f}"
        assert shown["predictions"] == f"{store.counts()['predictions']:,}"
        assert shown["drawdown"] == "−1.23 %" and shown["open positions"] == "1"
        row = cells(page, "signals")[0]
        assert row[0] == f"{signal.known_at:%Y-%m-%d %H:%M}" and row[1:3] == [signal.symbol, signal.side]
        assert row[4] == f"{100 * signal.confidence:.1f} %" and row[6] == "+0.25 (−1.25 to +1.50)"
        assert len(cells(page, "signals")) == min(50, len(store.signals()))
        held = account.positions[0]
        assert cells(page, "positions")[0][:4] == [held.symbol, "short", "2.5", "100.5"]
        forecasts = cells(page, "forecasts")
        assert [row[1] for row in forecasts] == ["next hour", "4 hours", "12 hours", "day", "week"]
        assert forecasts[0][2] == "−0.31 %" and forecasts[4][2] == "no model says"
        assert cells(page, "models")[0][4:6] == ["59.3 % (58.0 % to 60.7 %)", "57.6 %"]
        assert cells(page, "importance")[0][1] == "order book imbalance"
        assert cells(page, "alerts")[0][1:4] == ["drift", "log volume", "warning"]
        assert page.evaluate("document.querySelector('#answer').textContent").endswith("; 1 alarm is on.")
        assert cells(page, "notices")[0][3] == "silent <b>for</b> 10 minutes"
        state = page.evaluate("document.querySelector('#chart').smc.state()")
        candles = store.candles("SIM-A", "5m", newest=1)
        assert (
            state["last"]["close"] == candles["close"].iloc[-1]
            and state["patterns"]
            and len(state["trades"]) == 1
        )
        assert page.evaluate("document.querySelector('#equity canvas') !== null")
        assert "Simulated" in page.evaluate("document.querySelector('#simulated').textContent")

        close = store.last_close() + STEP
        reason = "<img src=x onerror=window.broken=1>"
        write_close(store, close, 10_777.75, signal_of(decision_at("SIM-B", close, 99), reason))
        page.wait_for(f"document.body.dataset.close === {json.dumps(close.isoformat())}")
        assert cells(page, "signals")[0][8] == reason and page.evaluate("window.broken === undefined")
        assert tiles(page, "tiles")["equity"] == "10,777.75"
        assert len(cells(page, "signals")) == min(50, len(store.signals()))

        page.click("#stop")
        page.click("#stop-cancel")
        assert process.killed == []
        page.click("#stop")
        page.evaluate("document.querySelector('#close-all').checked = true")
        page.evaluate("document.querySelector('#stop-reason').value = 'a test of the switch'")
        page.click("#stop-panel .danger")
        page.wait_for("!document.querySelector('#stopped').hidden")
        assert process.killed == [("a test of the switch", True)]
        assert "a test of the switch" in page.evaluate("document.querySelector('#stopped').textContent")

        for width, dark in ((400, False), (400, True), (1200, True)):
            looked = browser.open(address, width=width, dark=dark)
            looked.wait_for("document.querySelector('#chart')?.dataset.ready === 'yes'")
            assert looked.evaluate("document.documentElement.scrollWidth <= innerWidth"), width
            looked.screenshot(tmp_path / f"page_{width}_{dark}.png")
            assert looked.errors == []
            assert all(url.startswith((address, "data:", "blob:")) for url in looked.requests)
            looked.close()
        assert page.errors == []
        assert all(url.startswith((address, "data:", "blob:")) for url in page.requests)
        assert not any(TOKEN in url for url in page.requests)


# deploy


def test_what_is_deployed_is_made_from_the_lists():
    done = subprocess.run(
        [sys.executable, "tools/deploy.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def instructions(text):
    "The instructions of a Dockerfile, by name, in order."
    lines = re.sub(r"\\\n", " ", re.sub(r"(?m)^#.*\n", "", text)).splitlines()
    return [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]


def test_the_image_is_made_of_what_is_there_and_runs_as_nobody():
    text, settings = (ROOT / "deploy/Dockerfile").read_text(), (ROOT / "settings.ini").read_text()
    steps, lock = instructions(text), (ROOT / "requirements.lock").read_text()
    told = {name: [value for other, value in steps if other == name] for name, _ in steps}
    python = re.search(r"min_python = (\S+)", settings)[1]
    assert told["FROM"] == [f"python:{python}-slim-bookworm"]
    kept = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    copied = {source for line in told["COPY"] for source in line.split()[:-1]}
    assert kept[0] == "*" and {line[1:] for line in kept if line.startswith("!")} == copied
    assert all((ROOT / source).exists() for source in copied)
    for pattern in re.findall(r"grep -oE '([^']+)'", text):  # versions that it takes from there
        assert re.search(pattern, lock if "uv" in pattern else settings, re.MULTILINE), pattern
    assert "--require-hashes -r requirements.lock" in text
    order = [name for name, _ in steps]
    assert (
        told["USER"] == ["smc"]
        and "useradd" in text
        and order.index("USER") > max(place for place, name in enumerate(order) if name == "RUN")
    )
    assert not re.search("TOKEN|PASSWORD|SECRET", text) and json.loads(told["ENTRYPOINT"][0]) == ["smc"]
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    service, port = compose["services"]["service"], told["EXPOSE"][0]
    assert f":{port}/health" in text and service["ports"] == [f"127.0.0.1:{port}:{port}"]
    cache = re.search(r"NUMBA_CACHE_DIR=(\S+)", text)[1]  # where nothing can be written nothing compiles
    assert (
        service["read_only"]
        and f"compiled:{cache}" in service["volumes"]
        and "compiled" in compose["volumes"]
    )
    for one in compose["services"].values():
        assert "build" in one or re.fullmatch(r"[\w/]+:v?\d[\w.-]*", one["image"]), one


def test_the_compose_file_opens_nothing_and_holds_no_secret():
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    assert set(compose["services"]) == {"service", "database", "prometheus", "grafana"}
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        for name, value in service.get("environment", {}).items():
            if re.search("TOKEN|PASSWORD", name):
                assert value.startswith("${"), name
    for line in (ROOT / "deploy/env.example").read_text().splitlines():
        assert not re.fullmatch(r"\w*(TOKEN|PASSWORD)=.+", line)


@pytest.fixture
def prometheus(served, tmp_path):
    "A real Prometheus that reads the service and the rules of `deploy/`; its address."
    import shutil
    import socket

    if shutil.which("prometheus") is None:
        pytest.skip("no Prometheus is at hand: apt-get install prometheus")
    address, *_ = served
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "alerts.yml").write_text((ROOT / "deploy/prometheus/alerts.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["authorization"]["credentials_file"] = str(tmp_path / "token")
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [address.removeprefix("http://")]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        "prometheus",
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
    ]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def asked(client, query):
    "What Prometheus says of a query."
    told = client.get("/api/v1/query", params={"query": query}).json()
    assert told["status"] == "success", f"{query}: {told}"
    return told["data"]["result"]


def answered(client, query):
    "Whether a query finds something; it does not while Prometheus starts."
    try:
        return bool(asked(client, query))
    except (httpx.TransportError, ValueError):
        return False


def test_prometheus_reads_the_metrics_and_every_query(served, prometheus):
    service, store = served[3], served[1]
    signals = store.signals(newest=20)
    service.metrics.answered([one.symbol for one in signals], [one.side for one in signals], 0.004, 1)
    service.metrics.signalled(signals, 0.006)
    service.metrics.stood(store.account())
    with httpx.Client(base_url=prometheus, timeout=20) as client:
        scraped = "sum(ml_predictions_total) > 0 and sum(count_over_time(smc_ready[1m])) > 2"
        until = time.monotonic() + 40
        while not answered(client, scraped) and time.monotonic() < until:
            time.sleep(0.3)
        for panel in PANELS:
            for query, _ in panel.queries:
                asked(client, query)
        assert float(asked(client, "sum(ml_predictions_total)")[0]["value"][1]) == 20
        assert float(asked(client, "smc_equity")[0]["value"][1]) == store.account().equity
        assert (
            0
            < float(
                asked(client, "histogram_quantile(0.5, ml_inference_duration_seconds_bucket)")[0]["value"][1]
            )
            < 0.005
        )
        groups = client.get("/api/v1/rules").json()["data"]["groups"]
        health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
        assert set(health) == {alarm.name for alarm in ALARMS}
        until = time.monotonic() + 15
        while "unknown" in health.values() and time.monotonic() < until:
            time.sleep(0.5)
            groups = client.get("/api/v1/rules").json()["data"]["groups"]
            health = {rule["name"]: rule["health"] for group in groups for rule in group["rules"]}
        assert set(health.values()) == {"ok"}
        served[2].state = served[2].state._replace(failed={"lstm": "no number"})
        until = time.monotonic() + 20
        while time.monotonic() < until:
            found = asked(client, 'ALERTS{alertname="ModelFailed"}')
            if found:
                break
            time.sleep(0.3)
        assert found and found[0]["metric"]["model"] == "lstm"
