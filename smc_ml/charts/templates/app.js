// The chart with its controls. It shows one View at a time and holds nothing that the view does not tell.

const THEMES = {
  dark: {ground: "#131722", ink: "#d1d4dc", grid: "#1e222d", line: "#2a2e39", quiet: "#8b909c", accent: "#7aa2ff"},
  light: {ground: "#ffffff", ink: "#22262b", grid: "#eef0f3", line: "#d9dce1", quiet: "#6d727c", accent: "#2457d6"}};
const MOST = 1500;   // patterns of a kind when all are asked for
const DARK = matchMedia("(prefers-color-scheme: dark)");

function clock(time) { return new Date(time * 1000).toISOString().slice(0, 16).replace("T", " "); }

function signed(value, digits = 2) { return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(digits)}`; }

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made && !name.startsWith("aria")) made[name] = value; else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

class App {
  #markets; #stores = new Map();

  constructor(root, {markets, ...source}) {
    this.#markets = new Map(markets);
    this.root = root;
    this.source = source;
    this.options = source.options;
    this.kindsOn = source.kinds.map(kind => this.options.shown.includes(kind.name));
    this.sessionsOn = this.options.sessions;
    this.most = this.options.strongest;
    this.theme = this.options.theme;
    this.palette = this.options.colours;
    this.trades = [];
    this.focus = null;
    this.replaying = false;
  }

  async start() {
    this.build();
    const LC = window.LightweightCharts;
    this.chart = LC.createChart(this.pane, {autoSize: true, layout: {attributionLogo: true, fontFamily: "system-ui, sans-serif"},
      crosshair: {mode: 0}, timeScale: {timeVisible: true, rightOffset: 8, minBarSpacing: .01, enableConflation: true},
      handleScroll: {vertTouchDrag: false}, rightPriceScale: {scaleMargins: {top: .1, bottom: .08}}});
    this.series = this.chart.addSeries(LC.CandlestickSeries, {borderVisible: false});
    this.drawing = new Drawing(this);
    this.series.attachPrimitive(this.drawing);
    this.chart.subscribeCrosshairMove(event => this.under(event));
    DARK.addEventListener("change", () => this.paint());
    this.paint();
    await this.show([...this.#markets.keys()][0], this.options.timeframe);
  }

  // ---- controls

  build() {
    const {root, source} = this;
    root.classList.add("smc-chart");
    this.bar = element("div", {className: "smc-bar"});
    this.symbols = element("select", {"aria-label": "symbol", hidden: this.#markets.size < 2},
      ...[...this.#markets.keys()].map(name => element("option", {value: name, textContent: name})));
    this.symbols.onchange = () => this.show(this.symbols.value, this.frame);
    this.frames = element("span", {className: "smc-group", role: "group", "aria-label": "timeframe"},
      ...source.timeframes.map(name => this.button(name, () => this.show(this.symbol, name), {"aria-pressed": "false"})));
    this.date = element("input", {type: "date", "aria-label": "go to date"});
    this.date.onchange = () => { if (this.date.value) this.jump(Date.parse(this.date.value) / 1000); };
    this.menu = this.button("Patterns", () => this.open(), {"aria-expanded": "false"});
    this.replayButton = this.button("Replay", () => this.replay(), {"aria-pressed": "false", title: "hide the future and step through the candles"});
    this.themeButton = this.button("◐", () => this.turn(), {"aria-label": "light or dark"});
    this.count = element("span", {className: "smc-count", role: "status"});
    this.bar.append(this.symbols, this.frames, this.date, this.menu, this.replayButton, this.themeButton, this.count);
    this.steps = this.stepper();
    this.panel = this.toggles();
    this.pane = element("div", {className: "smc-pane", tabIndex: 0, role: "application",
      "aria-label": "candles: arrow keys move, plus and minus zoom; in a replay the right arrow shows the next candle"});
    this.legend = element("div", {className: "smc-legend"});
    this.tip = element("div", {className: "smc-tip"});
    this.pane.append(this.legend, this.tip);
    const box = element("div", {className: "smc-trades", hidden: true});
    root.append(this.bar, this.steps, this.panel, this.pane, box);
    this.table = new Table(box, {name: "trades", click: trade => this.focusOn(trade), columns: this.columns()});
    root.addEventListener("keydown", event => this.key(event));
  }

  button(text, click, properties = {}) {
    const made = element("button", {type: "button", textContent: text, ...properties});
    made.onclick = click;
    return made;
  }

  stepper() {
    this.playButton = this.button("▶", () => this.play(), {"aria-label": "play", "aria-pressed": "false"});
    this.speed = element("select", {"aria-label": "speed"},
      ...[[800, "slow"], [300, "normal"], [80, "fast"]].map(([value, textContent]) => element("option", {value, textContent})));
    this.speed.value = 300;
    this.clock = element("span", {className: "smc-clock", role: "status"});
    return element("div", {className: "smc-bar smc-steps", hidden: true},
      this.button("◀", () => this.step(-1), {"aria-label": "one candle back"}), this.playButton,
      this.button("▶|", () => this.step(1), {"aria-label": "one candle on"}), this.speed,
      this.button("End replay", () => this.replay()), this.clock);
  }

  toggles() {
    const {source} = this, panel = element("div", {className: "smc-panel", hidden: true});
    for (const family of [...new Set(source.kinds.map(kind => kind.family))]) {
      const row = element("div", {className: "smc-group", role: "group", "aria-label": family}, element("b", {textContent: family}));
      source.kinds.forEach((kind, i) => { if (kind.family === family) row.append(this.toggle(kind, i)); });
      panel.append(row);
    }
    this.others = element("div", {className: "smc-group", role: "group", "aria-label": "patterns of higher timeframes"});
    const strongest = element("select", {"aria-label": "how many of a kind"},
      ...[...new Set([3, 6, 12, 25, this.most, MOST])].sort((a, b) => a - b).map(value =>
        element("option", {value, textContent: value === MOST ? "all of a kind" : `strongest ${value} of a kind`})));
    strongest.value = this.most;
    strongest.onchange = () => { this.most = Number(strongest.value); this.drawing.update(); };
    this.strongest = strongest;
    const more = element("div", {className: "smc-group"}, strongest,
      this.check("open zones only", false, on => { this.openOnly = on; }),
      this.check("without internal structure", false, on => { this.swingOnly = on; }),
      this.check("sessions", this.sessionsOn, on => { this.sessionsOn = on; }),
      this.check("blue and orange candles", this.palette === "blue_orange", on => { this.palette = on ? "blue_orange" : "green_red"; this.paint(); }));
    panel.append(this.others, more);
    return panel;
  }

  toggle(kind, i) {
    const swatch = element("i", {}), made = this.button("", () => {
      this.kindsOn[i] = !this.kindsOn[i];
      made.setAttribute("aria-pressed", this.kindsOn[i]);
      this.drawing.update();
    }, {"aria-pressed": String(this.kindsOn[i]), title: kind.name.replaceAll("_", " ")});
    swatch.style.background = `linear-gradient(135deg, ${kind.up} 50%, ${kind.down} 50%)`;
    made.append(swatch, kind.group === kind.tag || kind.form === "swing" ? kind.tag : `${kind.group} (${kind.tag})`);
    return made;
  }

  check(text, checked, change) {
    const box = element("input", {type: "checkbox", checked});
    box.onchange = () => { change(box.checked); this.drawing.update(); };
    return element("label", {}, box, text);
  }

  open() {
    this.panel.hidden = !this.panel.hidden;
    this.menu.setAttribute("aria-expanded", !this.panel.hidden);
  }

  columns() {
    const price = value => this.price(value), time = value => clock(value);
    return [{key: "entry_at", title: "entry", show: time, plain: time}, {key: "exit_at", title: "exit", show: time, plain: value => value === null ? "" : clock(value)},
      {key: "setup", title: "setup"}, {key: "side", title: "side"}, {key: "entry", title: "entry price", show: price, number: true},
      {key: "stop", title: "stop", show: price, number: true}, {key: "target", title: "target", show: price, number: true},
      {key: "exit", title: "exit price", show: price, number: true}, {key: "reason", title: "closed by", show: value => value.replaceAll("_", " ")},
      {key: "r", title: "R", show: value => signed(value), number: true}, {key: "p", title: "P(win)", show: value => value.toFixed(2), number: true}];
  }

  // ---- what is shown

  async show(symbol, frame) {
    const before = this.view, now = this.replaying && before ? before.now : null, range = before && this.chart.timeScale().getVisibleRange();
    if (!this.#stores.has(symbol)) this.#stores.set(symbol, await Store.of(this.source, this.#markets.get(symbol)));
    const store = this.#stores.get(symbol);
    this.symbol = symbol;
    this.frame = frame;
    this.frameCode = this.source.timeframes.indexOf(frame);
    this.symbols.value = symbol;
    for (const button of this.frames.children) button.setAttribute("aria-pressed", button.textContent === frame);
    this.framesOn = this.source.timeframes.map(name => name === frame);
    this.higher();
    const seen = now === null ? store.n : Math.max(1, searchLeft(store.time, now - store.step + 1));
    this.view = new View(store, frame, seen);
    this.series.applyOptions({priceFormat: {type: "price", precision: this.view.digits, minMove: this.view.tick}});
    this.refresh();
    if (range && this.view.bar(range.to) > 0) this.around(this.view.bar((range.from + range.to) / 2));
    else this.latest();
  }

  higher() {   // patterns of higher timeframes, on the candles of this one
    const rows = this.source.timeframes.slice(this.frameCode);
    this.others.textContent = "";
    this.others.hidden = rows.length < 2;
    this.others.append(element("b", {textContent: "patterns of"}), ...rows.map(name => {
      const code = this.source.timeframes.indexOf(name), made = this.button(name, () => {
        this.framesOn[code] = !this.framesOn[code];
        made.setAttribute("aria-pressed", this.framesOn[code]);
        this.drawing.update();
      }, {"aria-pressed": String(this.framesOn[code])});
      return made;
    }));
  }

  wanted() {
    return {kinds: this.kindsOn, frames: this.framesOn, most: this.most, openOnly: this.openOnly, swingOnly: this.swingOnly};
  }

  refresh() {
    this.series.setData(this.view.bars);
    this.told();
  }

  told() {   // everything beside the candles that depends on what has been seen
    this.trades = this.view.trades();
    const box = this.root.querySelector(".smc-trades"), some = this.trades.length > 0;
    box.hidden = !some;
    if (some) this.table.show(this.trades, `${this.trades.length} trade${this.trades.length === 1 ? "" : "s"} of ${this.symbol}: click one to see it`);
    if (this.focus !== null && !this.trades.some(trade => trade.id === this.focus)) this.focus = null;
    this.date.min = clock(this.view.first).slice(0, 10);
    this.date.max = clock(this.view.now).slice(0, 10);
    this.clock.textContent = this.replaying ? `${clock(this.view.now)} UTC: what was known then` : "";
    this.legendOf(null);
    this.tip.textContent = "";
    this.drawing.update?.();
  }

  counted(shown, total) {
    this.count.textContent = total ? `${shown.toLocaleString("en")} of ${total.toLocaleString("en")} patterns in view` : "";
  }

  price(value) { return value.toFixed(this.view.digits); }

  half() { return Math.round((this.root.clientWidth < 600 ? 80 : this.options.visible) / 2); }

  latest() { this.chart.timeScale().setVisibleLogicalRange({from: this.view.last - 2 * this.half(), to: this.view.last + 8}); }

  around(bar) {
    const half = this.half(), to = Math.min(bar + half, this.view.last + Math.round(half / 2));
    this.chart.timeScale().setVisibleLogicalRange({from: to - 2 * half, to});
  }

  jump(time) { this.around(this.view.bar(Math.min(time, this.view.now))); }

  focusOn(trade) {
    this.focus = trade.id;
    this.jump(trade.exit_at === null ? trade.entry_at : (trade.entry_at + trade.exit_at) / 2);
    this.drawing.update();
    this.pane.scrollIntoView({block: "nearest"});
  }

  // ---- replay

  replay() {
    this.replaying = !this.replaying;
    this.stop();
    this.replayButton.setAttribute("aria-pressed", this.replaying);
    this.steps.hidden = !this.replaying;
    const range = this.chart.timeScale().getVisibleLogicalRange();
    const middle = Math.round(range.from + (range.to - range.from) * .6);
    this.view.see(this.replaying ? this.view.seenBy(Math.min(middle, this.view.last - 1)) : Infinity);
    this.focus = null;
    this.refresh();
    if (this.replaying) {
      this.chart.timeScale().setVisibleLogicalRange(range);
      this.pane.focus({preventScroll: true});
    } else this.around(middle);
  }

  at(time) {   // replay up to the last candle that had closed by a time
    if (!this.replaying) this.replay();
    this.stop();
    const store = this.#stores.get(this.symbol);
    this.view.see(searchLeft(store.time, time - store.step + 1));
    this.refresh();
    this.latest();
  }

  step(count) {
    if (!this.replaying) return;
    if (count < 0) {
      const range = this.chart.timeScale().getVisibleLogicalRange();
      this.view.see(this.view.seen + count);
      this.refresh();
      this.chart.timeScale().setVisibleLogicalRange(range);
      return;
    }
    for (; count > 0; count--) {
      const bar = this.view.further();
      if (!bar) { this.stop(); break; }
      this.series.update(bar);
    }
    this.told();
    this.follow();
  }

  follow() {
    const scale = this.chart.timeScale(), range = scale.getVisibleLogicalRange();
    if (this.view.last > range.to - 2) scale.setVisibleLogicalRange({from: range.from + this.view.last - range.to + 2, to: this.view.last + 2});
  }

  play() {
    if (this.timer) return this.stop();
    this.playButton.setAttribute("aria-pressed", true);
    this.playButton.textContent = "❚❚";
    const on = () => { this.step(1); if (this.timer) this.timer = setTimeout(on, Number(this.speed.value)); };
    this.timer = setTimeout(on, 0);
  }

  stop() {
    clearTimeout(this.timer);
    this.timer = null;
    this.playButton.setAttribute("aria-pressed", false);
    this.playButton.textContent = "▶";
  }

  key(event) {
    if (["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
    const inTable = event.target.closest(".smc-trades"), button = event.target.tagName === "BUTTON";
    const scale = this.chart.timeScale(), range = scale.getVisibleLogicalRange(), wide = range.to - range.from;
    const move = by => scale.setVisibleLogicalRange({from: range.from + by, to: range.to + by});
    const zoom = by => scale.setVisibleLogicalRange({from: range.to - wide * by, to: range.to});
    const sign = {ArrowRight: 1, ArrowLeft: -1}[event.key];
    if (sign && this.replaying) this.step(event.shiftKey ? 10 * sign : sign);
    else if (sign && !inTable) move(sign * wide / 10);
    else if (event.key === " " && this.replaying && !button && !inTable) this.play();
    else if (event.key === "Escape" && this.replaying) this.replay();
    else if (event.key === "+" || event.key === "=") zoom(.8);
    else if (event.key === "-") zoom(1.25);
    else return;
    event.preventDefault();
  }

  // ---- what lies under the cursor

  under(event) {
    const bar = event.seriesData && event.seriesData.get(this.series);
    this.legendOf(bar || null);
    this.tip.textContent = event.point ? this.zonesAt(event.point).join("\n") : "";
  }

  zonesAt({x, y}) {
    const bar = this.chart.timeScale().coordinateToLogical(x), price = this.series.coordinateToPrice(y);
    if (bar === null || price === null || bar > this.view.last) return [];
    const ticks = price / this.view.tick, wanted = {...this.wanted(), most: 4, from: bar, to: bar, price: ticks};
    const zones = this.view.select(wanted).patterns.filter(pattern => pattern.form === "zone" || pattern.form === "range");
    return zones.reverse().slice(0, 4).map(zone => this.story(zone, bar));
  }

  story(zone, bar) {
    const kind = this.source.kinds[zone.kind], frame = this.source.timeframes[zone.frame];
    const ended = zone.endedAt === null ? "in force" : `ended ${clock(zone.endedAt)}`;
    return `${zone.up ? "bullish" : "bearish"} ${kind.tag} ${frame}  ${this.price(zone.bottom)} – ${this.price(zone.top)}  ` +
      `confirmed ${clock(zone.knownAt)}${bar < zone.known ? " (not yet here)" : ""}, ${ended}`;
  }

  legendOf(bar) {
    const one = bar || this.view.bars[this.view.last], change = (one.close / one.open - 1) * 100, C = this.colours;
    const prices = ["open", "high", "low", "close"].map(name => `${name[0].toUpperCase()} ${this.price(one[name])}`).join("  ");
    const name = element("b", {textContent: this.symbol === "candles" ? this.frame : `${this.symbol} · ${this.frame}`});
    const numbers = element("span", {textContent: `${prices}  ${signed(change)} %`});
    numbers.style.color = this.readable(one.close >= one.open ? C.up : C.down);
    this.legend.replaceChildren(name, " ", numbers, " ", element("small", {textContent: `${clock(one.time)} UTC`}));
  }

  // ---- looks

  dark() { return this.theme === "auto" ? DARK.matches : this.theme === "dark"; }

  turn() {
    this.theme = this.dark() ? "light" : "dark";
    this.paint();
  }

  // A colour that can be read as text on the ground: lighter in the dark, darker in the light.
  readable(hex) {
    const key = hex + this.dark(), known = this.readables ||= {};
    if (!known[key]) {
      const toward = this.dark() ? 255 : 0, share = this.dark() ? .3 : .25;
      known[key] = "#" + [1, 3, 5].map(at => Math.round(parseInt(hex.slice(at, at + 2), 16) * (1 - share) + toward * share).toString(16).padStart(2, "0")).join("");
    }
    return known[key];
  }

  paint() {
    const [up, down] = this.options_palette(), C = this.colours = {...THEMES[this.dark() ? "dark" : "light"], up, down};
    this.root.dataset.theme = this.dark() ? "dark" : "light";
    if (document.body.classList.contains("smc-page")) document.body.style.background = C.ground;
    this.chart.applyOptions({layout: {background: {color: C.ground}, textColor: C.ink}, grid: {vertLines: {color: C.grid}, horzLines: {color: C.grid}},
      rightPriceScale: {borderColor: C.line}, timeScale: {borderColor: C.line}});
    this.series.applyOptions({upColor: up, downColor: down, wickUpColor: up, wickDownColor: down});
    if (this.view) this.legendOf(null);
  }

  options_palette() { return this.options.palettes[this.palette]; }

  // All that the page shows, for whoever wants to check it.
  state() {
    const scale = this.chart.timeScale(), range = scale.getVisibleLogicalRange();
    const price = this.chart.priceScale("right").getVisibleRange?.() ?? null;
    return {now: this.view.now, symbol: this.symbol, frame: this.frame, candles: this.series.data().length,
      last: this.series.data().at(-1), range, price, legend: this.legend.textContent, tip: this.tip.textContent,
      count: this.count.textContent, clock: this.clock.textContent, date: [this.date.min, this.date.max],
      patterns: this.drawing.shown.patterns, trades: this.trades, sessions: this.drawing.bands,
      rows: [...this.root.querySelectorAll("tbody tr")].map(row => [...row.children].map(cell => cell.textContent))};
  }
}

window.SmcChart = {
  open(name) {
    const root = document.getElementById(name), data = document.getElementById(`${name}-data`);
    const source = JSON.parse(data.textContent);
    data.remove();
    const app = root.smc = new App(root, source);
    app.ready = app.start().then(() => { root.dataset.ready = "yes"; return app; }, error => {
      root.append(element("p", {className: "smc-failed", role: "alert", textContent: `The chart cannot be drawn: ${error.message}`}));
      throw error;
    });
    return app.ready;
  }};
