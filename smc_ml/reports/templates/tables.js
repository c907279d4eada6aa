(() => {
  if (window.smcTables) return window.smcTables.upgrade();
  const LONG = 12, TALL = 40; // rows that fit on a screen; rows from which on a table scrolls by itself
  const OTHER = {ascending: "descending", descending: "ascending"};

  const number = text => {
    const plain = text.trim().replaceAll(",", "").replaceAll("\u2212", "-");
    const found = plain.match(/^[+-]?\d+(\.\d+)?(e[+-]?\d+)?(?=$|\s|%)/i);
    return found ? Number(found[0]) : NaN;
  };
  const keyOf = cell => {
    if (cell.dataset.key !== undefined) return cell.dataset.key;
    const text = cell.textContent.trim();
    if (cell.closest("table").dataset.keyed !== undefined || ["", "\u2013", "NaN", "None"].includes(text)) return undefined;
    return isNaN(number(text)) ? text : number(text);
  };
  const compared = (one, two) => isNaN(one) || isNaN(two) ? String(one).localeCompare(String(two)) : one - two;
  const body = table => table.tBodies[0];
  const headings = table => [...table.tHead.rows[0].cells];

  function sort(heading) {
    const table = heading.closest("table"), at = heading.cellIndex;
    const order = OTHER[heading.getAttribute("aria-sort")] || heading.dataset.first;
    const keyed = [...body(table).rows].map(row => [keyOf(row.cells[at]), row]);
    keyed.sort(([one], [two]) => one === undefined || two === undefined
      ? (one === undefined) - (two === undefined)
      : (order === "ascending" ? 1 : -1) * compared(one, two));
    headings(table).forEach(each => each.setAttribute("aria-sort", "none"));
    heading.setAttribute("aria-sort", order);
    body(table).append(...keyed.map(([, row]) => row));
  }

  function filter(table, text) {
    const wanted = text.toLowerCase().split(/\s+/).filter(word => word);
    const rows = [...body(table).rows];
    rows.forEach(row => {
      const said = row.textContent.toLowerCase();
      row.hidden = !wanted.every(word => said.includes(word));
    });
    return `${rows.filter(row => !row.hidden).length} of ${rows.length} rows`;
  }

  // A cell that a spreadsheet would run as a formula is written as text.
  const guarded = text => /^\s*[=+\-@\t\r]/.test(text) && isNaN(Number(text)) ? `'${text}` : text;
  const quoted = text => /[",\n\r']/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const said = cell => {
    const copy = cell.cloneNode(true);
    copy.querySelectorAll("small").forEach(note => note.remove());
    return copy.textContent.trim();
  };
  const noted = cell => [...cell.querySelectorAll("small")].map(note => note.textContent.trim()).join("; ");

  function csv(table) {
    const rows = [...body(table).rows].filter(row => !row.hidden);
    const columns = headings(table).flatMap((heading, at) => {
      const name = heading.textContent.trim(), cells = rows.map(row => row.cells[at]);
      const values = cells.map(cell => {
        const key = cell.dataset.key;
        return key !== undefined && key !== "" && !isNaN(key) && !isNaN(number(said(cell))) ? key : said(cell);
      });
      const notes = cells.map(noted);
      return notes.some(note => note) ? [[name, ...values], [`${name}: beside it`, ...notes]] : [[name, ...values]];
    });
    const line = at => columns.map(column => quoted(guarded(column[at]))).join(",");
    return Array.from({length: rows.length + 1}, (_, at) => line(at)).join("\r\n") + "\r\n";
  }

  function download(table) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([csv(table)], {type: "text/csv"}));
    link.download = `${table.dataset.name || document.title.split(" \u00b7 ")[0] || "table"}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  function tools(table, count) {
    const bar = document.createElement("div"), box = document.createElement("input");
    const told = document.createElement("span"), save = document.createElement("button");
    bar.className = "table-tools";
    box.type = "search";
    box.placeholder = "filter";
    box.setAttribute("aria-label", "filter the rows of the table");
    told.setAttribute("role", "status");
    told.textContent = `${count} rows`;
    box.addEventListener("input", () => { told.textContent = filter(table, box.value); });
    save.type = "button";
    save.textContent = "download CSV";
    save.addEventListener("click", () => download(table));
    bar.append(box, told, save);
    return bar;
  }

  function makeButton(heading) {
    if (heading.querySelector("button")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    if (!button.textContent.trim()) button.setAttribute("aria-label", "sort by the names of the rows");
    heading.append(button);
    heading.scope = "col";
    heading.setAttribute("aria-sort", "none");
    const rows = [...body(heading.closest("table")).rows].map(row => keyOf(row.cells[heading.cellIndex]));
    heading.dataset.first = rows.some(key => typeof key === "number") ? "descending" : "ascending";
  }

  function scroller(table) {
    let box = table.closest(".sorted, .scroll");
    if (!box) {
      box = document.createElement("div");
      box.className = "scroll";
      table.replaceWith(box);
      box.append(table);
    }
    return box;
  }

  function upgradeOne(table) {
    table.dataset.ready = "yes";
    const rows = body(table).rows.length, box = scroller(table);
    const long = rows > LONG || table.dataset.tools !== undefined;
    if (long) box.before(tools(table, rows));
    if (long || table.dataset.keyed !== undefined) {
      box.classList.add("sorted");
      headings(table).forEach(heading => {
        makeButton(heading);
        heading.querySelector("button").addEventListener("click", () => sort(heading));
      });
    }
    if (rows > TALL) box.classList.add("tall");
    if (box.scrollWidth > box.clientWidth || rows > TALL) box.tabIndex = 0;
  }

  // One row of headings, and every row with a cell for each.
  const regular = table => table.tHead && table.tHead.rows.length === 1 && body(table) &&
    [table.tHead.rows[0], ...body(table).rows].every(row =>
      row.cells.length === table.tHead.rows[0].cells.length && ![...row.cells].some(cell => cell.colSpan > 1 || cell.rowSpan > 1));

  function upgrade() {
    document.querySelectorAll(".sorted table, main table").forEach(table => {
      if (!table.dataset.ready && !table.closest(".folded, .no-tools") && regular(table)) upgradeOne(table);
    });
  }
  window.smcTables = {upgrade, csv, guarded};
  upgrade();
})();
