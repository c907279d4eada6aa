// What is known at the close of the last candle seen. Everything that is drawn, listed or said comes from here.

class View {
  #store; #frame; #known;

  constructor(store, frame, seen) {
    this.#store = store;
    this.#frame = store.frame(frame);
    this.frame = frame;
    this.digits = store.digits;
    this.tick = 1 / store.scale;
    this.see(seen);
  }

  get first() { return this.#store.time[0]; }
  get whole() { return this.seen === this.#store.n; }

  // Look at so many base candles; the candles of the frame are made of them alone.
  see(seen) {
    const store = this.#store, frame = this.#frame;
    this.seen = Math.max(1, Math.min(seen, store.n));
    this.now = store.time[this.seen - 1] + store.step;
    this.#known = searchLeft(store.patterns.known, this.now + 1, store.patterns.n);
    const last = frame.slot[this.seen - 1], all = store.bars(frame);
    this.bars = this.seen === store.n ? all : all.slice(0, last);
    if (this.seen < store.n) this.bars.push(store.candle(frame, last, this.seen));
    this.last = last;
    return this;
  }

  // One base candle further; returns the candle that is new or has changed.
  further() {
    const store = this.#store, frame = this.#frame;
    if (this.seen >= store.n) return null;
    if (this.bars === frame.bars) this.bars = this.bars.slice();
    this.seen++;
    this.now = store.time[this.seen - 1] + store.step;
    while (this.#known < store.patterns.n && store.patterns.known[this.#known] <= this.now) this.#known++;
    this.last = frame.slot[this.seen - 1];
    return this.bars[this.last] = store.candle(frame, this.last, this.seen);
  }

  // Base candles that had been seen when a candle of this frame closed.
  seenBy(bar) { return this.#frame.first[Math.max(0, Math.min(bar, this.last)) + 1]; }

  // The candle at a time, or the last before it.
  bar(time) { return Math.max(0, searchLeft(this.#frame.opens, time + 1, this.last + 1) - 1); }

  // Patterns that reach into a range of candles, at most so many of a kind, weakest first.
  select({from, to, kinds, frames, most, openOnly = false, swingOnly = false, price = null}) {
    const p = this.#store.patterns, {rows, formed, known, ended} = this.#frame.placed, lasts = this.#frame.lasts;
    const forms = this.#store.source.kinds, chosen = kinds.map(() => null), reach = Math.min(from, this.last);
    let total = 0;
    const upto = searchLeft(formed, Math.floor(to) + 1);
    for (let block = 0; block * BLOCK < upto; block++) {
      if (lasts[block] < reach) continue;
      const stop = Math.min(upto, (block + 1) * BLOCK);
      for (let j = block * BLOCK; j < stop; j++) {
        const i = rows[j], kind = p.kind[i];
        if (i >= this.#known || !kinds[kind] || !frames[p.frame[i]]) continue;
        const form = forms[kind].form, gone = p.ended[i] <= this.now;
        const right = LASTING.has(form) ? (gone ? ended[j] : NEVER) : form === "swing" ? formed[j] + 1 : known[j];
        if (right < from || (openOnly && gone && LASTING.has(form)) || (swingOnly && p.internal[i])) continue;
        if (price !== null && (price > p.top[i] || price < p.bottom[i] || formed[j] > to)) continue;
        total++;
        const limit = form === "zone" || form === "range" ? most : 4 * most;
        (chosen[kind] ||= new Strongest(limit)).add(j, p.strength[i], i);
      }
    }
    const found = [];
    for (const best of chosen) if (best) for (const j of best.sorted()) found.push(this.#told(j));
    return {patterns: found, total};
  }

  // One pattern as it is known now: without its end, if that is still to come.
  #told(j) {
    const store = this.#store, p = store.patterns, {rows, formed, known, ended} = this.#frame.placed, i = rows[j];
    const open = p.ended[i] > this.now, kind = store.source.kinds[p.kind[i]], s = store.scale;
    return {kind: p.kind[i], form: kind.form, frame: p.frame[i], up: Boolean(p.up[i]), internal: Boolean(p.internal[i]),
      label: store.labels[p.label[i]], strength: p.strength[i] / 100, formed: formed[j], known: known[j],
      ended: open ? null : ended[j], formedAt: p.formed[i], knownAt: p.known[i], endedAt: open ? null : p.ended[i],
      top: p.top[i] / s, bottom: p.bottom[i] / s, level: p.level[i] / s};
  }

  // Trades that have been entered; what ended later has no end.
  trades() {
    return this.#store.trades.filter(trade => trade.entry_seen <= this.now).map(trade => {
      if (trade.exit_seen >= 0 && trade.exit_seen <= this.now) return trade;
      return {...trade, exit_at: null, exit_seen: null, exit: null, reason: "open", r: null, profit: null, cost_r: null};
    });
  }

  // Sessions that have begun and reach into a range of candles, with their high and low so far.
  sessions(from, to) {
    const store = this.#store, {opens} = this.#frame, found = [];
    const left = opens[Math.max(0, Math.min(Math.floor(from), this.last))];
    const right = Math.min(this.now, opens[Math.max(0, Math.min(Math.ceil(to), this.last))] + store.step);
    for (const session of store.sessions) {
      if (session.end <= left || session.begin >= right) continue;
      const a = searchLeft(store.time, session.begin), b = Math.min(searchLeft(store.time, session.end), this.seen);
      if (b <= a) continue;
      let high = store.high[a], low = store.low[a];
      for (let i = a + 1; i < b; i++) { high = Math.max(high, store.high[i]); low = Math.min(low, store.low[i]); }
      found.push({name: session.name, which: session.which, from: this.bar(store.time[a]), to: this.bar(store.time[b - 1]) + 1,
        high: high / store.scale, low: low / store.scale});
    }
    return found;
  }
}

// The strongest few of many: a heap whose top is the weakest; of equal strength the later one is weaker.
class Strongest {
  constructor(most) { this.most = most; this.heap = []; }

  static weaker(a, b) { return a[1] < b[1] || (a[1] === b[1] && a[2] > b[2]); }

  add(place, strength, row) {
    const heap = this.heap, one = [place, strength, row];
    if (heap.length < this.most) {
      heap.push(one);
      for (let at = heap.length - 1; at;) {
        const above = (at - 1) >> 1;
        if (!Strongest.weaker(heap[at], heap[above])) break;
        [heap[at], heap[above]] = [heap[above], heap[at]];
        at = above;
      }
    } else if (strength > heap[0][1] || (strength === heap[0][1] && row < heap[0][2])) {
      heap[0] = one;
      for (let at = 0; ;) {
        let least = at;
        for (const below of [2 * at + 1, 2 * at + 2]) if (below < heap.length && Strongest.weaker(heap[below], heap[least])) least = below;
        if (least === at) break;
        [heap[at], heap[least]] = [heap[least], heap[at]];
        at = least;
      }
    }
  }

  sorted() { return [...this.heap].sort((a, b) => Strongest.weaker(a, b) ? -1 : 1).map(one => one[0]); }
}
