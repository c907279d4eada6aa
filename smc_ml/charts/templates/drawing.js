// One primitive draws all that lies on the candles. Candles are the unit of its x axis.

const NARROW = {day: "PD", week: "PW", month: "PM"};
const SESSION_COLOURS = ["#8e6fd8", "#2f7bf6", "#e08a00"];

function shade(hex, opacity) {
  const [r, g, b] = [1, 3, 5].map(at => parseInt(hex.slice(at, at + 2), 16));
  return `rgba(${r},${g},${b},${opacity})`;
}

// Labels that keep clear of each other: a label takes the first of its places that is free, or none.
class Labels {
  constructor(context, size, ground) {
    Object.assign(this, {context, size, ground: shade(ground, .75), taken: [[0, 0, Math.min(480, size.width), 24]]});   // prices on top
  }

  width(text) { return this.context.measureText(text).width; }

  put(text, colour, places) {   // places: [x of the middle, y of the baseline]
    const half = this.width(text) / 2 + 3;
    for (const [x, y] of places) {
      const box = [x - half, y - 11, x + half, y + 3];
      if (box[0] < 0 || box[2] > this.size.width || box[1] < 0 || box[3] > this.size.height) continue;
      if (this.taken.some(other => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) continue;
      this.taken.push(box);
      this.context.strokeStyle = this.ground;   // a rim of the ground, so that it can be read on candles
      this.context.lineWidth = 3;
      this.context.lineJoin = "round";
      this.context.strokeText(text, x, y);
      this.context.fillStyle = colour;
      this.context.fillText(text, x, y);
      return true;
    }
    return false;
  }
}

class Drawing {
  constructor(app) {
    this.app = app;
    this.shown = {patterns: [], total: 0};
    this.milliseconds = [];
    const part = (zOrder, draw) => ({zOrder: () => zOrder, renderer: () => ({draw: target => this.paint(target, draw)})});
    this.views = [part("bottom", "under"), part("top", "over")];
  }

  attached({requestUpdate}) { this.update = requestUpdate; }
  paneViews() { return this.views; }

  updateAllViews() {
    const range = this.app.chart.timeScale().getVisibleLogicalRange();
    if (range && this.app.view) this.choose(range);
  }

  choose(range) {
    const {app} = this, began = performance.now(), {view} = app;
    this.range = range;
    this.shown = view.select({from: range.from - 1, to: Math.min(range.to + 1, view.last + 1), ...app.wanted()});
    this.bands = app.sessionsOn ? view.sessions(range.from, range.to) : [];
    app.counted(this.shown.patterns.length, this.shown.total);
    this.chosen = performance.now() - began;
  }

  paint(target, part) {
    const {app} = this;
    if (!app.view || !this.range) return;
    const began = performance.now(), scale = app.chart.timeScale(), base = Math.floor(this.range.from);
    const x0 = scale.logicalToCoordinate(base), width = (scale.logicalToCoordinate(base + 1000) - x0) / 1000;
    if (x0 === null || !width) return;
    target.useMediaCoordinateSpace(({context, mediaSize}) => {
      context.font = "11px system-ui, sans-serif";
      context.textAlign = "center";
      this.g = context;
      this.size = mediaSize;
      this.width = width;
      this.X = bar => x0 + (bar - base - .5) * width;         // left edge of a candle
      this.Y = price => app.series.priceToCoordinate(price);
      this[part]();
    });
    this.milliseconds.push(performance.now() - began + (part === "under" ? this.chosen || 0 : 0));
    if (this.milliseconds.length > 600) this.milliseconds.splice(0, 200);
  }

  colour(pattern) {
    const kind = this.app.source.kinds[pattern.kind];
    return pattern.up ? kind.up : kind.down;
  }

  under() {
    for (const band of this.bands) this.session(band);
    for (const pattern of this.shown.patterns) {
      if (pattern.form === "zone") this.zone(pattern);
      else if (pattern.form === "range") this.premium(pattern);
    }
  }

  over() {
    const {g} = this;
    this.labels = new Labels(g, this.size, this.app.colours.ground);
    this.trades();
    const strongestFirst = [...this.shown.patterns].reverse();
    for (const form of ["break", "mark", "level", "swing"]) {
      for (const pattern of strongestFirst) if (pattern.form === form) this[form](pattern);
    }
    for (const pattern of strongestFirst) if (pattern.form === "zone" || pattern.form === "range") this.tag(pattern);
    for (const band of this.bands) this.sessionName(band);
    g.setLineDash([]);
  }

  line(x0, y0, x1, y1, colour, width = 1, dash = []) {
    const {g} = this;
    g.strokeStyle = colour;
    g.lineWidth = width;
    g.setLineDash(dash);
    g.beginPath();
    g.moveTo(x0, y0);
    g.lineTo(x1, y1);
    g.stroke();
    g.setLineDash([]);
  }

  // Left edge hollow, edge of confirmation, right edge, top and height of a zone, in pixels.
  box(pattern) {
    const top = this.Y(pattern.top), bottom = this.Y(pattern.bottom);
    if (top === null || bottom === null || bottom < 0 || top > this.size.height) return null;
    const right = pattern.ended === null ? this.size.width : this.X(pattern.ended);
    return {formed: this.X(pattern.formed), known: this.X(pattern.known), right, top, high: Math.max(bottom - top, 1)};
  }

  zone(pattern) {
    const box = this.box(pattern), {g, app} = this;
    if (!box) return;
    const kind = app.source.kinds[pattern.kind], colour = this.colour(pattern), open = pattern.ended === null;
    g.lineWidth = 1;
    if (box.known - box.formed > 1) {                              // formed, not yet confirmed: hollow
      g.setLineDash([2, 3]);
      g.strokeStyle = shade(colour, open ? .75 : .45);
      g.strokeRect(box.formed, box.top, box.known - box.formed, box.high);
    }
    g.fillStyle = shade(colour, open ? kind.opacity : kind.opacity * .6);
    g.fillRect(box.known, box.top, Math.max(box.right - box.known, 1), box.high);
    g.setLineDash(kind.dashed ? [5, 4] : []);
    g.strokeStyle = shade(colour, open ? .7 : .3);
    g.strokeRect(box.known, box.top, Math.max(box.right - box.known, 1), box.high);
    g.setLineDash([]);
  }

  premium(pattern) {   // a dealing range: premium above its equilibrium, discount below
    const box = this.box(pattern), {g, app} = this;
    if (!box) return;
    const kind = app.source.kinds[pattern.kind], middle = this.Y((pattern.top + pattern.bottom) / 2);
    const wide = Math.max(box.right - box.known, 1), fade = pattern.ended === null ? 1 : .5;
    g.fillStyle = shade(kind.down, kind.opacity * fade);
    g.fillRect(box.known, box.top, wide, middle - box.top);
    g.fillStyle = shade(kind.up, kind.opacity * fade);
    g.fillRect(box.known, middle, wide, box.top + box.high - middle);
    this.line(box.known, middle, box.right, middle, app.colours.quiet, 1, [6, 4]);
  }

  tag(pattern) {
    const box = this.box(pattern);
    if (!box) return;
    const {app} = this, kind = app.source.kinds[pattern.kind], other = pattern.frame !== app.frameCode;
    const frame = other ? ` ${app.source.timeframes[pattern.frame]}` : "";
    const colour = app.readable(this.colour(pattern));
    if (pattern.form === "range") {
      const half = box.high / 4 + 4;
      for (const [name, y] of [["premium", box.top + half], ["discount", box.top + box.high - half + 8]]) {
        this.ends(name + frame, app.readable(name === "premium" ? kind.down : kind.up), box, y, pattern.ended === null);
      }
      return;
    }
    const y = box.high > 12 ? Math.min(box.top + box.high / 2, this.size.height - 10) + 4 : box.top - 3;
    this.ends(kind.tag + frame, colour, box, Math.max(y, 12), pattern.ended === null);
  }

  ends(text, colour, box, y, open) {   // inside the right end of what is open, else at the close that confirmed it
    const wide = this.labels.width(text) + 6, places = [];
    if (open) for (let k = 0; k < 5; k++) places.push([Math.min(box.right, this.size.width) - wide * (k + .5) - 2, y]);
    else if (box.right - box.known > wide) places.push([Math.max(box.known, 0) + wide / 2, y]);
    this.labels.put(text, colour, places.filter(([x]) => x - wide / 2 >= box.known - 1));
  }

  break(pattern) {
    const y = this.Y(pattern.level), {app, size} = this;
    if (y === null || y < -20 || y > size.height + 20) return;
    const left = this.X(pattern.formed + .5), right = this.X(pattern.known - .5), colour = this.colour(pattern);
    this.line(left, y, right, y, shade(colour, pattern.internal ? .8 : 1), pattern.internal ? 1 : 2, pattern.internal ? [5, 4] : []);
    const text = app.source.kinds[pattern.kind].tag, from = Math.max(left, 0), to = Math.min(right, size.width);
    if (to - from < (pattern.internal ? 14 : 6) || this.width < .8) return;
    const base = pattern.up ? y - 4 : y + 12, over = pattern.up ? y - 16 : y + 24, at = share => from + (to - from) * share;
    this.labels.put(text, app.readable(colour), [[at(.5), base], [at(.25), base], [at(.75), base], [at(.5), over]]);
  }

  level(pattern) {
    const y = this.Y(pattern.level), {app, size} = this;
    if (y === null || y < -20 || y > size.height + 20) return;
    const colour = this.colour(pattern), open = pattern.ended === null, left = this.X(pattern.known);
    const right = open ? size.width : this.X(pattern.ended), begin = this.X(pattern.formed + .5);
    if (begin < left) this.line(begin, y, left, y, shade(colour, .35), 1, [1, 3]);
    this.line(left, y, right, y, shade(colour, open ? .95 : .5), 1, [2, 2]);
    const text = this.levelName(pattern), base = pattern.up ? y + 12 : y - 3, wide = this.labels.width(text) + 6;
    const places = open ? [[size.width - wide / 2 - 2, base], [size.width - 1.6 * wide, base]] : [[(Math.max(left, 0) + Math.min(right, size.width)) / 2, base]];
    if (open || right - left > wide) this.labels.put(text, app.readable(colour), places);
  }

  levelName(pattern) {
    const {name, tag} = this.app.source.kinds[pattern.kind], high = name.includes("high");
    const frame = pattern.frame === this.app.frameCode ? "" : ` ${this.app.source.timeframes[pattern.frame]}`;
    if (!name.startsWith("previous")) return tag + frame;
    if (NARROW[pattern.label]) return NARROW[pattern.label] + (high ? "H" : "L");
    return `${pattern.label.replaceAll("_", " ")} ${high ? "high" : "low"}`;
  }

  mark(pattern) {   // a sweep: a cross on the level; a run: an arrow through it
    const y = this.Y(pattern.level), {g, app} = this;
    if (y === null || y < -20 || y > this.size.height + 20) return;
    const x = this.X(pattern.known - .5), colour = this.colour(pattern), sign = pattern.up ? 1 : -1;
    this.line(this.X(pattern.formed + .5), y, x, y, shade(colour, .4));
    if (app.source.kinds[pattern.kind].name.endsWith("sweep")) {
      this.line(x - 4, y - 4, x + 4, y + 4, colour, 2);
      this.line(x + 4, y - 4, x - 4, y + 4, colour, 2);
      if (this.width > 5) this.labels.put("sweep", app.readable(colour), [[x, y + sign * 9 + (sign > 0 ? 9 : -1)]]);
      return;
    }
    g.fillStyle = colour;
    g.beginPath();
    g.moveTo(x - 4, y + sign * 4);
    g.lineTo(x, y - sign * 4);
    g.lineTo(x + 4, y + sign * 4);
    g.fill();
  }

  swing(pattern) {
    const y = this.Y(pattern.level), {g, app} = this;
    if (y === null) return;
    const x = this.X(pattern.formed + .5), sign = pattern.up ? 1 : -1, small = pattern.internal ? 3 : 4;
    g.fillStyle = app.colours.quiet;
    g.beginPath();
    g.moveTo(x - small, y + sign * 10);
    g.lineTo(x + small, y + sign * 10);
    g.lineTo(x, y + sign * 4);
    g.fill();
    if (pattern.label && this.width > 2) this.labels.put(pattern.label, app.readable(app.colours.quiet), [[x, y + sign * 14 + (sign > 0 ? 8 : 0)]]);
  }

  session(band) {
    const {g} = this, x = this.X(band.from), wide = this.X(band.to) - x, y = this.Y(band.high), high = this.Y(band.low) - y;
    if (wide < 6) return;
    g.fillStyle = shade(SESSION_COLOURS[band.which], .07);
    g.fillRect(x, y, wide, high);
    g.strokeStyle = shade(SESSION_COLOURS[band.which], .35);
    g.setLineDash([1, 3]);
    g.strokeRect(x, y, wide, high);
    g.setLineDash([]);
  }

  sessionName(band) {
    const name = band.name.replaceAll("_", " "), x = this.X(band.from), wide = this.labels.width(name) + 6;
    if (this.X(band.to) - x < wide) return;
    this.labels.put(name, this.app.readable(SESSION_COLOURS[band.which]), [[x + wide / 2, this.Y(band.high) - 4]]);
  }

  trades() {
    const {app} = this;
    for (const trade of app.trades) {
      const left = this.X(app.view.bar(trade.entry_at)), open = trade.exit_at === null;
      const right = open ? this.X(app.view.last + 1) : this.X(app.view.bar(trade.exit_seen - 1) + 1);
      if (right >= 0 && left <= this.size.width) this.trade(trade, left, Math.max(right, left + 2), open);
    }
  }

  trade(trade, left, right, open) {   // green to the target, red to the stop, a dot where it ended
    const {g, app} = this, focus = app.focus === trade.id, C = app.colours, entry = this.Y(trade.entry);
    if (focus) this.origin(trade);
    for (const [name, colour] of [["target", C.up], ["stop", C.down]]) {
      if (trade[name] === null || trade[name] === undefined) continue;
      const y = this.Y(trade[name]);
      g.fillStyle = shade(colour, focus ? .22 : .1);
      g.fillRect(left, Math.min(entry, y), right - left, Math.abs(entry - y));
      if (focus) {
        this.line(left, y, right, y, colour, 1);
        this.labels.put(`${name} ${app.price(trade[name])}`, app.readable(colour), [[right + 44, y + 4], [left - 44, y + 4]]);
      }
    }
    const price = open ? app.view.bars[app.view.last].close : trade.exit, end = this.Y(price);
    this.line(left, entry, right, end, C.ink, focus ? 2 : 1, [3, 3]);
    if (focus) this.labels.put(`entry ${app.price(trade.entry)}`, C.ink, [[left - 44, entry + 4], [left + 44, entry - 6]]);
    if (open) return;
    const won = trade.r === null || trade.r === undefined ? (trade.side === "long") === (trade.exit > trade.entry) : trade.r > 0;
    g.fillStyle = won ? C.up : C.down;
    g.beginPath();
    g.arc(right, end, focus ? 5 : 3.5, 0, 7);
    g.fill();
    if (!focus && this.width < 2.5) return;
    const told = trade.r === null || trade.r === undefined ? "" : `${trade.r > 0 ? "+" : "−"}${Math.abs(trade.r).toFixed(2)} R`;
    this.labels.put(focus ? `${trade.reason} ${app.price(trade.exit)} ${told}`.trim() : told, C.ink, [[right, end - 9], [right, end + 18], [right + 50, end + 4]]);
  }

  origin(trade) {   // the zone that the trade came from
    if (!trade.known_at || trade.top === undefined || trade.top === null) return;
    const {g, app} = this, left = this.X(app.view.bar(trade.formed_at || trade.known_at)), right = this.X(app.view.bar(trade.entry_at));
    const top = this.Y(trade.top), bottom = this.Y(trade.bottom);
    g.strokeStyle = app.colours.accent;
    g.lineWidth = 2;
    g.setLineDash([]);
    g.strokeRect(left, top, Math.max(right - left, 4), Math.max(bottom - top, 2));
    g.lineWidth = 1;
    this.labels.put(trade.setup, app.colours.accent, [[left + 40, top - 5], [left + 40, bottom + 13]]);
  }
}
