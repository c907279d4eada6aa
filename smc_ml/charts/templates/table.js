// A table that sorts, filters, pages and downloads; rows answer to a click and to Enter.

class Table {
  constructor(box, {name, columns, page = 10, click}) {
    Object.assign(this, {box, name, columns, page, click, rows: [], order: null, down: false, query: "", at: 0});
    box.innerHTML = `<div class="smc-tools"><strong></strong><input type="search" placeholder="filter"><span role="status"></span>
      <button type="button" class="smc-csv">Download CSV</button></div>
      <div class="smc-scroll" tabindex="0" role="region"><table><thead><tr></tr></thead><tbody></tbody></table></div>
      <div class="smc-pages"><button type="button" aria-label="previous page">‹</button><span></span>
      <button type="button" aria-label="next page">›</button></div>`;
    const find = selector => box.querySelector(selector);
    find("input").setAttribute("aria-label", `filter ${name}`);
    find(".smc-scroll").setAttribute("aria-label", name);
    columns.forEach((column, i) => this.head(column, i));
    find("input").oninput = event => { this.query = event.target.value.trim().toLowerCase(); this.at = 0; this.draw(); };
    const [back, on] = box.querySelectorAll(".smc-pages button");
    back.onclick = () => { this.at = Math.max(0, this.at - this.page); this.draw(); };
    on.onclick = () => { this.at += this.page; this.draw(); };
    find(".smc-csv").onclick = () => this.download();
  }

  head(column, i) {
    const head = document.createElement("th"), button = document.createElement("button");
    head.scope = "col";
    button.type = "button";
    button.textContent = column.title;
    head.append(button);
    this.box.querySelector("thead tr").append(head);
    button.onclick = () => {
      this.down = this.order === i ? !this.down : false;
      this.order = i;
      this.at = 0;
      this.draw();
    };
  }

  show(rows, caption) {
    this.rows = rows;
    this.caption = caption;
    if (this.at >= rows.length) this.at = 0;
    this.draw();
  }

  text(row, column) {
    const value = row[column.key];
    return value === null || value === undefined || value === "" ? "" : column.show ? column.show(value, row) : String(value);
  }

  chosen() {
    const words = this.query.split(/\s+/).filter(Boolean);
    const told = row => this.columns.map(column => this.text(row, column)).join(" ").toLowerCase();
    const kept = words.length ? this.rows.filter(row => { const all = told(row); return words.every(word => all.includes(word)); }) : this.rows;
    if (this.order === null) return kept;
    const {key} = this.columns[this.order], sign = this.down ? -1 : 1;
    const missing = value => value === null || value === undefined || value === "";
    return [...kept].sort((a, b) => {
      const x = a[key], y = b[key];
      if (missing(x) || missing(y)) return missing(x) - missing(y);
      return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
    });
  }

  draw() {
    const all = this.chosen(), body = this.box.querySelector("tbody"), find = selector => this.box.querySelector(selector);
    this.box.querySelectorAll("th").forEach((head, i) => {
      if (i === this.order) head.setAttribute("aria-sort", this.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    find("strong").textContent = this.caption || "";
    find(".smc-tools span").textContent = all.length === this.rows.length ? "" : `${all.length} of ${this.rows.length}`;
    body.textContent = "";
    for (const row of all.slice(this.at, this.at + this.page)) body.append(this.line(row));
    find(".smc-pages").hidden = all.length <= this.page;
    find(".smc-pages span").textContent = `${this.at + 1}–${Math.min(this.at + this.page, all.length)} of ${all.length}`;
    const [back, on] = this.box.querySelectorAll(".smc-pages button");
    back.disabled = !this.at;
    on.disabled = this.at + this.page >= all.length;
  }

  line(row) {
    const line = document.createElement("tr");
    for (const column of this.columns) {
      const cell = document.createElement("td");
      cell.textContent = this.text(row, column);
      if (column.number) cell.className = "num";
      line.append(cell);
    }
    line.tabIndex = 0;
    line.onclick = () => this.click(row);
    line.onkeydown = event => { if (event.key === "Enter") this.click(row); };
    return line;
  }

  // A cell that a spreadsheet would take for a formula is quoted with an apostrophe.
  static cell(value) {
    const text = value === null || value === undefined ? "" : String(value);
    const safe = /^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text)) ? `'${text}` : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  }

  csv() {
    const told = (row, column) => column.plain ? column.plain(row[column.key]) : row[column.key];
    const lines = [this.columns.map(column => Table.cell(column.title)),
      ...this.chosen().map(row => this.columns.map(column => Table.cell(told(row, column))))];
    return lines.map(cells => cells.join(",")).join("\r\n") + "\r\n";
  }

  download() {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([this.csv()], {type: "text/csv"}));
    link.download = `${this.name}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}
