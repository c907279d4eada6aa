// All that a page holds of one symbol, past and future. Only View reads it, and shows what is known at a time.

const NEVER = 2 ** 30;   // a place right of every candle
const BLOCK = 64;        // patterns in a block of the interval index
const LASTING = new Set(["zone", "range", "level"]);

class Store {
  static async of(source, parts) {
    const store = new Store();
    Object.assign(store, {source, step: parts.step, digits: parts.digits, scale: 10 ** parts.digits});
    const none = {}, [base, patterns, slots, sessions] = await Promise.all([
      unpackAll(parts.candles), unpackAll(parts.patterns || none), unpackAll(parts.slots || none),
      unpackAll(parts.sessions || none)]);
    store.readCandles(base);
    store.slots = Object.fromEntries(Object.entries(slots).map(([frame, steps]) => [frame, sums(steps)]));
    store.readPatterns(patterns, parts.patterns);
    store.readSessions(sessions, parts.sessions);
    store.trades = store.readTrades(parts.trades);
    store.frames = {};
    return store;
  }

  readCandles({time, open, high, low, close}) {
    const n = time.length;
    this.n = n;
    this.time = sums(time);
    [this.open, this.high, this.low, this.close] = [open, high, low, close];
    for (let i = 0, last = 0; i < n; i++) {   // each column becomes prices in ticks, in place
      open[i] += last; high[i] += open[i]; low[i] += open[i]; close[i] += open[i];
      last = close[i];
    }
  }

  readPatterns(columns, named) {
    const p = this.patterns = named ? columns : {kind: [], frame: [], up: [], strength: [], internal: [], label: [],
      known: [], formed: [], ended: [], level: [], top: [], bottom: []};
    this.labels = named ? named.labels : [""];
    p.n = p.kind.length;
    if (!named) return;
    p.known = sums(p.known);
    p.level = sums(p.level);
    for (let i = 0; i < p.n; i++) {
      p.formed[i] = p.known[i] - p.formed[i];
      p.ended[i] = p.ended[i] < 0 ? 2 ** 31 - 1 : p.known[i] + p.ended[i];
      p.top[i] += p.level[i];
      p.bottom[i] = p.level[i] - p.bottom[i];
    }
  }

  readSessions(columns, named) {
    this.sessions = [];
    if (!named) return;
    const begin = sums(columns.begin);
    begin.forEach((time, i) => this.sessions.push(
      {name: named.names[columns.which[i]], which: columns.which[i], begin: time, end: time + columns.length[i]}));
  }

  readTrades(columns) {
    if (!columns) return [];
    const names = Object.keys(columns);
    return columns.entry_at.map((_, i) => Object.fromEntries([["id", i], ...names.map(name => [name, columns[name][i]])]));
  }

  // Candles of a timeframe: where each begins, the first of the base candles in it, and its prices.
  frame(name) {
    if (this.frames[name]) return this.frames[name];
    const frame = this.slots[name] ? this.merged(this.slots[name]) : this.own();
    frame.name = name;
    this.place(frame);
    return this.frames[name] = frame;
  }

  own() {
    const first = new Int32Array(this.n + 1);
    for (let i = 0; i <= this.n; i++) first[i] = i;
    return {opens: this.time, first, slot: first};
  }

  merged(opens) {
    const slot = new Int32Array(this.n), first = new Int32Array(opens.length + 1).fill(this.n);
    for (let i = 0, at = 0; i < this.n; i++) {
      while (at + 1 < opens.length && opens[at + 1] <= this.time[i]) at++;
      slot[i] = at;
      if (first[at] > i) first[at] = i;
    }
    for (let at = opens.length - 1; at >= 0; at--) if (first[at] > first[at + 1]) first[at] = first[at + 1];
    return {opens, first, slot};
  }

  // One candle of a frame, made of the base candles that were seen.
  candle(frame, at, seen = this.n) {
    const from = frame.first[at], to = Math.min(frame.first[at + 1], seen), s = this.scale;
    let high = this.high[from], low = this.low[from];
    for (let i = from + 1; i < to; i++) {
      if (this.high[i] > high) high = this.high[i];
      if (this.low[i] < low) low = this.low[i];
    }
    return {time: frame.opens[at], open: this.open[from] / s, high: high / s, low: low / s, close: this.close[to - 1] / s};
  }

  bars(frame) {
    if (!frame.bars) {
      frame.bars = new Array(frame.opens.length);
      for (let at = 0; at < frame.bars.length; at++) frame.bars[at] = this.candle(frame, at);
    }
    return frame.bars;
  }

  // Patterns of this timeframe and above on its candles, with an index of their extents.
  place(frame) {
    const p = this.patterns, order = this.source.timeframes, least = order.indexOf(frame.name);
    const forms = this.source.kinds.map(kind => LASTING.has(kind.form));
    const rows = [];
    for (let i = 0; i < p.n; i++) if (p.frame[i] >= least) rows.push(i);
    const n = rows.length, formed = new Int32Array(n), known = new Int32Array(n), ended = new Int32Array(n);
    const keys = new Float64Array(n);
    for (let k = 0; k < n; k++) {
      const i = rows[k];
      formed[k] = searchLeft(frame.opens, p.formed[i]);
      known[k] = searchLeft(frame.opens, p.known[i]);
      ended[k] = p.ended[i] === 2 ** 31 - 1 ? NEVER : searchLeft(frame.opens, p.ended[i]);
      keys[k] = formed[k] * n + k;
    }
    keys.sort();
    const by = {rows: new Int32Array(n), formed: new Int32Array(n), known: new Int32Array(n), ended: new Int32Array(n)};
    const lasts = new Int32Array(Math.ceil(n / BLOCK)).fill(-1);
    for (let j = 0; j < n; j++) {
      const k = keys[j] - Math.floor(keys[j] / n) * n, i = rows[k];
      by.rows[j] = i; by.formed[j] = formed[k]; by.known[j] = known[k]; by.ended[j] = ended[k];
      const right = forms[p.kind[i]] ? ended[k] : known[k];
      if (right > lasts[j >> 6]) lasts[j >> 6] = right;
    }
    frame.placed = by;
    frame.lasts = lasts;
  }
}
