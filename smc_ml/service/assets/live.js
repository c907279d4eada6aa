// The live page: what the service tells, as it tells it. Every text is set as text, none as HTML.
(function () {
"use strict";

const AGAIN = 1000;   // milliseconds between two looks, at least
const by = id => document.getElementById(id);
const known = value => value !== null && value !== undefined;

function make(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made && !name.startsWith("aria")) made[name] = value; else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// ---- numbers and times as people write them

const minus = text => text.replace("-", "−");
function number(value, digits = 2, unit = "") {
  if (!known(value)) return "–";
  return minus(value.toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits})) + unit;
}
const percent = (value, digits = 1) => number(known(value) ? 100 * value : null, digits, " %");
function signed(value, digits, unit) { return known(value) ? (value > 0 ? "+" : "") + number(value, digits, unit) : "–"; }
const change = (value, digits = 2) => signed(known(value) ? 100 * value : null, digits, " %");
const time = value => known(value) ? value.slice(0, 16).replace("T", " ") : "–";
const price = value => known(value) ? minus(value.toLocaleString("en", {maximumSignificantDigits: 8})) : "–";
function between(show, value, low, high) {
  const bounds = known(low) && known(high) ? ` (${show(low)} to ${show(high)})` : "";
  return show(value) + bounds;
}

// ---- tables and tiles

function table(place, columns, rows, empty) {
  const box = by(place);
  if (!rows.length) { box.replaceChildren(make("p", {className: "empty", textContent: empty})); return; }
  const head = make("tr", {}, ...columns.map(column =>
    make("th", {scope: "col", className: column.text ? "text" : "", textContent: column.title})));
  const body = make("tbody", {}, ...rows.map(row => line(columns, row)));
  box.replaceChildren(make("table", {}, make("thead", {}, head), body));
}

function line(columns, row) {
  return make("tr", {}, ...columns.map(column => {
    const shown = column.show(row), cell = make("td", {className: [column.text ? "text" : "", column.wide ? "wide" : "",
      column.look ? column.look(row) : ""].filter(Boolean).join(" ")});
    cell.append(shown);
    return cell;
  }));
}

function tile(name, value, note = "") {
  const parts = [["name", name], ["value", value], ["note", note]].filter(([, text]) => text !== "");
  return make("div", {className: "tile"}, ...parts.map(([className, textContent]) => make("div", {className, textContent})));
}

// ---- asking

class Away extends Error {}

async function ask(path, options = {}) {
  const answer = await fetch(path, {credentials: "same-origin", cache: "no-store", ...options});
  if (answer.status === 401) { location.assign("/login"); throw new Away("the token is needed again"); }
  const told = await answer.json();
  if (!answer.ok) throw new Away(told.error || `the service answered ${answer.status}`);
  return told;
}

function trouble(text) {
  by("trouble").hidden = !text;
  by("trouble").textContent = text;
}

// ---- what is shown

const SIGNALS = [
  {title: "known at (UTC)", text: true, show: row => time(row.known_at)},
  {title: "symbol", text: true, show: row => row.symbol},
  {title: "signal", text: true, show: row => row.side, look: row => `side-${row.side}`},
  {title: "setup", text: true, show: row => row.decision.kind.replaceAll("_", " ")},
  {title: "P(win)", show: row => percent(row.confidence)},
  {title: "strength", text: true, show: row => row.strength},
  {title: "expected R (interval)", show: row => between(value => signed(value, 2, ""), row.expected_r, row.low, row.high)},
  {title: "risk", show: row => percent(row.risk, 2)},
  {title: "not acted on because", text: true, wide: true, show: row => row.reason || "acted on"}];
const POSITIONS = [
  {title: "symbol", text: true, show: row => row.symbol},
  {title: "side", text: true, show: row => row.units > 0 ? "long" : "short", look: row => row.units > 0 ? "side-LONG" : "side-SHORT"},
  {title: "units", show: row => price(Math.abs(row.units))}, {title: "entry", show: row => price(row.entry)},
  {title: "since (UTC)", text: true, show: row => time(row.entry_at)}, {title: "stop", show: row => price(row.stop)},
  {title: "target", show: row => price(row.target)}, {title: "candles held", show: row => number(row.bars, 0)}];
const FORECASTS = [
  {title: "symbol", text: true, show: row => row.symbol}, {title: "span", text: true, show: row => row.words},
  {title: "expected return", show: row => row.model ? between(value => change(value), row.expected_return, row.low, row.high) : "no model says"},
  {title: "P(up)", show: row => row.model ? percent(row.probability_up) : ""},
  {title: "P(down)", show: row => row.model ? percent(row.probability_down) : ""},
  {title: "expected range: drawdown to rally", show: row => known(row.expected_drawdown) || known(row.expected_rally)
    ? `${change(row.expected_drawdown)} to ${change(row.expected_rally)}` : ""},
  {title: "model", text: true, show: row => row.model}, {title: "as of (UTC)", text: true, show: row => row.model ? time(row.known_at) : ""}];
const MODELS = [
  {title: "model", text: true, show: row => row.name},
  {title: "state", text: true, show: row => row.why ? `${row.state}: ${row.why}` : row.state, look: row => `state-${row.state}`},
  {title: "of", text: true, show: row => row.of}, {title: "weight", show: row => known(row.weight) ? percent(row.weight) : "–"},
  {title: "accuracy (95 % CI)", show: row => between(value => percent(value), row.scores.accuracy, row.scores.accuracy_low, row.scores.accuracy_high)},
  {title: "majority-class rate", show: row => percent(row.scores.majority_rate)},
  {title: "log-loss gain over the base rate (95 % CI)", show: row => between(value => signed(value, 4, ""),
    row.scores.log_loss_gain, row.scores.log_loss_gain_low, row.scores.log_loss_gain_high)},
  {title: "AUC (95 % CI)", show: row => between(value => number(value, 3), row.scores.auc, row.scores.auc_low, row.scores.auc_high)},
  {title: "measures above chance", show: row => known(row.scores.measures) ? `${row.scores.measures_above_chance} of ${row.scores.measures}` : "–"},
  {title: "trained to", text: true, show: row => time(row.last)}];
const NOTICES = [
  {title: "known at (UTC)", text: true, show: row => time(row.known_at)}, {title: "from", text: true, show: row => row.source},
  {title: "level", text: true, show: row => row.level, look: row => `level-${row.level}`},
  {title: "what", text: true, wide: true, show: row => row.what}];

const ALERTS = [
  {title: "since (UTC)", text: true, show: row => time(row.known_at)}, {title: "from", text: true, show: row => row.source},
  {title: "what is judged", text: true, show: row => row.metric.replaceAll("_", " ")},
  {title: "level", text: true, show: row => row.level, look: row => `level-${row.level}`},
  {title: "what", text: true, wide: true, show: row => row.what}];

function showState(state) {
  const account = state.account, first = state.first_equity;
  by("simulated").hidden = !state.simulated;
  by("stopped").hidden = !state.stopped;
  by("stopped").textContent = state.stopped ? `Trading is stopped: ${state.stopped}` : "";
  const well = state.ready ? "Working" : `Not ready: ${state.why}`;
  const worth = account ? `; equity ${number(account.equity, 2)}${first ? ` (${change(account.equity / first - 1)} since the start)` : ""}` : "";
  const count = state.alerts.length, alarms = count ? `; ${count} alarm${count === 1 ? " is" : "s are"} on` : "";
  by("answer").textContent = `${well}; last close ${time(state.last_close)} UTC${worth}${alarms}.`;
  by("tiles").replaceChildren(
    tile("equity", account ? number(account.equity, 2) : "–", account ? `cash ${number(account.cash, 2)}` : "no close yet"),
    tile("drawdown", account ? percent(account.drawdown, 2) : "–", "from the peak"),
    tile("open positions", account ? number(account.positions.length, 0) : "–", account ? `exposure ${percent(account.exposure)}` : ""),
    tile("predictions", number(state.predictions, 0), "in all, of decisions"),
    tile("bundle", state.bundle.slice(0, 12), `${state.timeframe}, ${state.symbols.length} symbol${state.symbols.length === 1 ? "" : "s"}`));
  table("positions", POSITIONS, account ? account.positions : [], "Nothing is held.");
  table("forecasts", FORECASTS, state.forecasts, "No model of bars has said anything yet.");
  table("alerts", ALERTS, state.alerts, "No alarm of the monitoring is on.");
  table("notices", NOTICES, state.notices, "Nothing was out of the ordinary.");
  showSince(state.score);
  const feed = state.feed;
  by("health").replaceChildren(
    tile("feed", feed.connected ? "connected" : "not connected", `${number(feed.reconnects, 0)} reconnects`),
    tile("age of the newest candle", number(feed.age, 1, " s"), `lag ${number(feed.lag, 1, " s")}`),
    tile("fetched after gaps", number(feed.filled, 0), "candles"),
    tile("pages open", number(state.streams, 0)));
}

function showSince(score) {
  if (!score.events) { by("since").replaceChildren(tile("resolved predictions", "0", "no trade is over yet")); return; }
  const few = known(score.accuracy_low) ? "" : "too few days for an interval";
  by("since").replaceChildren(
    tile("resolved predictions", number(score.events, 0), `on ${score.days} day${score.days === 1 ? "" : "s"}`),
    tile("accuracy", percent(score.accuracy), few || `95 % CI ${percent(score.accuracy_low)} to ${percent(score.accuracy_high)}`),
    tile("majority-class rate", percent(score.majority_rate), "needs no model"),
    tile("mean R of all decisions", signed(score.mean_r, 3, " R"),
      known(score.mean_r_low) ? `95 % CI ${signed(score.mean_r_low, 3, "")} to ${signed(score.mean_r_high, 3, "")}` : few));
}

function showModels(told) {
  table("models", MODELS, told.models, "There is no model.");
  const most = Math.max(...told.importance.map(row => row.importance), 1e-12);
  const bar = row => {
    const made = make("span", {className: "bar"});
    made.style.width = `${Math.max(0, 100 * row.importance / most)}%`;
    return made;
  };
  table("importance", [{title: "model", text: true, show: row => row.model}, {title: "feature", text: true, show: row => row.feature.replaceAll("_", " ")},
    {title: "rise of the log loss when shuffled (95 % CI)", show: row => between(value => number(value, 4), row.importance, row.low, row.high)},
    {title: "", show: bar, look: () => "bar-place"}], told.importance, "The run that made the bundle did not measure it.");
}

// ---- chart and equity

const dark = matchMedia("(prefers-color-scheme: dark)");
let curve = null, shownChart = "", shownSymbols = "";

function showEquity(points) {
  const box = by("equity"), LC = window.LightweightCharts;
  box.hidden = points.length < 2;
  by("equity-said").textContent = points.length < 2 ? "The account has no past yet." :
    `From ${time(points[0].known_at)} to ${time(points.at(-1).known_at)} UTC; deepest drawdown ${percent(Math.min(...points.map(point => point.drawdown)), 2)}.`;
  if (box.hidden) return;
  if (!curve) {
    curve = LC.createChart(box, {autoSize: true, handleScroll: {vertTouchDrag: false}, timeScale: {timeVisible: true},
      layout: {attributionLogo: true, fontFamily: "system-ui, sans-serif", background: {color: "transparent"}}});
    curve.line = curve.addSeries(LC.AreaSeries, {lineWidth: 2});
    dark.addEventListener("change", paint);
    paint();
  }
  curve.line.setData(points.map(point => ({time: Date.parse(point.known_at) / 1000, value: point.equity})));
  if (!curve.fitted) { curve.timeScale().fitContent(); curve.fitted = true; }
}

function paint() {
  const look = getComputedStyle(document.documentElement), colour = name => look.getPropertyValue(name).trim();
  const line = {color: colour("--line")}, border = {borderColor: colour("--line")}, accent = colour("--accent");
  curve.applyOptions({layout: {textColor: colour("--ink")}, grid: {vertLines: line, horzLines: line},
    rightPriceScale: border, timeScale: border});
  curve.line.applyOptions({lineColor: accent, topColor: `${accent}44`, bottomColor: `${accent}08`});
}

async function showChart(close) {
  const symbol = by("symbol").value, wanted = `${symbol} ${close}`;
  if (!symbol || wanted === shownChart) return;
  const source = await ask(`/api/chart?symbol=${encodeURIComponent(symbol)}`);
  shownChart = wanted;
  if (!source.markets) { by("chart-place").replaceChildren(make("p", {className: "empty card", textContent: "No candles of this symbol were written yet."})); return; }
  const old = by("chart")?.smc, same = old && old.symbol === symbol;
  const range = same ? old.chart.timeScale().getVisibleLogicalRange() : null, frame = same ? old.frame : null;
  const last = same ? old.view.last : 0;
  if (old) { old.paint = () => {}; old.chart.remove(); }
  const data = make("script", {type: "application/json", id: "chart-data", textContent: JSON.stringify(source)});
  const root = make("div", {className: "smc-chart", id: "chart", role: "region", "aria-label": `candles of ${symbol} with patterns`});
  root.style.setProperty("--smc-height", innerWidth < 600 ? "420px" : "520px");
  by("chart-place").replaceChildren(root, data);
  const app = await window.SmcChart.open("chart");
  if (frame && frame !== app.frame) await app.show(symbol, frame);
  const moved = range ? app.view.last - last : 0;
  if (range && Math.abs(moved) < 5 && range.to < last) app.chart.timeScale().setVisibleLogicalRange(range);
}

function showSymbols(symbols) {
  const text = symbols.join("\n");
  if (text === shownSymbols) return;
  const before = by("symbol").value;
  shownSymbols = text;
  by("symbol").replaceChildren(...symbols.map(name => make("option", {value: name, textContent: name})));
  if (symbols.includes(before)) by("symbol").value = before;
}

// ---- looking again

let looking = false, wanted = false, last = 0, close = "";

async function look() {
  if (looking) { wanted = true; return; }
  looking = true;
  try {
    const [state, signals, equity, models] = await Promise.all(
      ["/api/state", "/api/signals", "/api/equity", "/api/models"].map(path => ask(path)));
    close = state.last_close;
    showState(state);
    showSymbols(state.symbols);
    table("signals", SIGNALS, signals.signals, "There was no signal yet.");
    showEquity(equity.equity);
    showModels(models);
    await showChart(close);
    trouble("");
    document.body.dataset.close = close || "none";
    document.body.dataset.looks = Number(document.body.dataset.looks || 0) + 1;
  } catch (error) {
    trouble(`This page is not current: ${error.message}. It tries again.`);
    wanted = true;
  }
  looking = false;
  last = Date.now();
  if (wanted) { wanted = false; soon(); }
}

let timer = null;
function soon() {
  if (timer) return;
  timer = setTimeout(() => { timer = null; look(); }, Math.max(100, AGAIN - (Date.now() - last)));
}

function come(signal) {   // at once, before the next look
  const body = by("signals").querySelector("tbody");
  if (!body) return;
  const row = line(SIGNALS, signal);
  row.className = "new";
  body.prepend(row);
}

function listen() {
  const events = new EventSource("/api/events");
  events.addEventListener("signal", event => { come(JSON.parse(event.data)); soon(); });
  for (const name of ["close", "notice", "stopped", "back"]) events.addEventListener(name, soon);
  events.addEventListener("away", event => trouble(`The database does not answer: ${JSON.parse(event.data).why}`));
  let lost = false;
  events.onopen = () => { document.body.dataset.listening = "yes"; if (lost) { lost = false; soon(); } };
  events.onerror = () => {
    lost = true;
    document.body.dataset.listening = "no";
    trouble("The service does not answer. This page tries again.");
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 2000);
  };
}

// ---- the kill switch

function openStop(open) {
  by("stop-panel").hidden = !open;
  by("stop").setAttribute("aria-expanded", open);
  if (open) by("stop-reason").focus();
}

by("stop").onclick = () => openStop(by("stop-panel").hidden);
by("stop-cancel").onclick = () => openStop(false);
by("stop-panel").onsubmit = async event => {
  event.preventDefault();
  const body = {confirm: "stop trading", close_all: by("close-all").checked, reason: by("stop-reason").value};
  try {
    const told = await ask("/api/kill", {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)});
    openStop(false);
    by("stopped").hidden = false;
    by("stopped").textContent = `Trading is stopped: ${told.stopped}`;
    soon();
  } catch (error) {
    by("stop-said").textContent = `Not stopped: ${error.message}. Create the kill file beside the database instead.`;
  }
};
by("symbol").onchange = () => showChart(close).catch(error => trouble(error.message));

look();
listen();
}());
