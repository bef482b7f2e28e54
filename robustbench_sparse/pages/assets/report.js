"use strict";
// The leaderboard's behaviour: sort, filter, columns, pages, downloads; all of its state is in the address.
(function () {
  const $ = (id) => document.getElementById(id);

  // Of every page: copy buttons, and Escape closes what is open.
  document.addEventListener("click", function (event) {
    const id = event.target.dataset && event.target.dataset.copy;
    if (!id) return;
    const text = $(id).textContent;
    const say = (what) => { $("copied").textContent = what; };
    const select = function () { getSelection().selectAllChildren($(id)); say("selected: copy with the keyboard"); };
    if (navigator.clipboard) navigator.clipboard.writeText(text).then(() => say("copied"), select); else select();
  });
  document.addEventListener("keydown", function (event) {
    if (event.key !== "Escape") return;
    const open = [...document.querySelectorAll("details.proof[open], details.chooser[open]")].pop();
    if (open) { open.open = false; open.querySelector("summary").focus(); }
  });
  document.addEventListener("toggle", function (event) {
    if (!event.target.open || !event.target.matches("details.proof")) return;
    for (const other of document.querySelectorAll("details.proof[open]")) if (other !== event.target) other.open = false;
  }, true);

  // One thing open at a time, and none after a click elsewhere.
  document.addEventListener("pointerdown", function (event) {
    const mine = event.target.closest("details.chooser, details.proof");
    for (const open of document.querySelectorAll("details.chooser[open], details.proof[open]")) if (open !== mine) open.open = false;
  });
  document.addEventListener("click", function (event) {
    if (!event.target.matches("[data-close]")) return;
    const open = event.target.closest("details");
    open.open = false;
    open.querySelector("summary").focus();
  });

  const report = window.REPORT, board = $("board");
  if (!report || !board) return;
  const columns = report.columns, rows = report.rows, PER_PAGE = 50;
  const place = new Map(columns.map((c, i) => [c.key, i]));
  const first = columns.filter((c) => c.shown).map((c) => c.key);
  const order = new Map(rows.map((r, i) => [r.id, i]));
  let state, shownRows = [];

  // ---- The state, and its address: #row?sort=-worst&data=MNIST&cols=run,worst&page=2
  function fresh() { return { anchor: "", sort: [], cols: first.slice(), q: "", whole: false, page: 1, facets: {} }; }
  function read() {
    const s = fresh(), hash = decodeURI(location.hash.slice(1)), cut = hash.indexOf("?");
    s.anchor = cut < 0 ? hash : hash.slice(0, cut);
    const given = new URLSearchParams(cut < 0 ? "" : hash.slice(cut + 1));
    s.sort = (given.get("sort") || "").split(",").filter((k) => place.has(k.replace(/^-/, "")));
    const cols = (given.get("cols") || "").split(",").filter((k) => place.has(k));
    if (cols.length) s.cols = cols;
    s.q = given.get("q") || "";
    s.whole = given.get("complete") === "1";
    s.page = Math.max(1, parseInt(given.get("page"), 10) || 1);
    for (const f of report.facets) { const v = given.getAll(f.key); if (v.length) s.facets[f.key] = v; }
    return s;
  }
  function write() {
    const out = new URLSearchParams();
    if (state.sort.length) out.set("sort", state.sort.join(","));
    if (state.cols.join() !== first.join()) out.set("cols", state.cols.join(","));
    if (state.q) out.set("q", state.q);
    if (state.whole) out.set("complete", "1");
    for (const key in state.facets) for (const v of state.facets[key]) out.append(key, v);
    if (state.page > 1) out.set("page", state.page);
    const text = String(out), hash = "#" + state.anchor + (text ? "?" + text : "");
    history.replaceState(null, "", hash === "#" ? location.href.split("#")[0] : hash);
  }

  // ---- Rows
  function compare(a, b) {
    for (const key of state.sort) {
      const down = key[0] === "-", i = place.get(key.replace(/^-/, "")), x = a.sort[i], y = b.sort[i];
      if (x === y) continue;
      if (x === null) return 1; // what is missing comes last, whichever way
      if (y === null) return -1;
      const sign = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      if (sign) return down ? -sign : sign;
    }
    return order.get(a.id) - order.get(b.id);
  }
  function passes(row, but) {
    if (state.whole && !row.whole) return false;
    if (state.q && !state.q.toLowerCase().split(/\s+/).every((w) => row.text.includes(w))) return false;
    return report.facets.every(function (f, i) {
      const wanted = state.facets[f.key];
      return f.key === but || !wanted || row.facets[i].some((v) => wanted.includes(v));
    });
  }
  function element(tag, text, attributes) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    for (const key in attributes || {}) made.setAttribute(key, attributes[key]);
    return made;
  }
  function draw() {
    shownRows = rows.filter((r) => passes(r)).sort(compare);
    const pages = Math.max(1, Math.ceil(shownRows.length / PER_PAGE)), at = shownRows.findIndex((r) => r.id === state.anchor);
    state.page = Math.min(state.page, pages);
    drawHead();
    const body = document.createElement("tbody"), cells = state.cols.map((k) => place.get(k));
    body.setAttribute("role", "rowgroup");
    for (const row of shownRows.slice((state.page - 1) * PER_PAGE, state.page * PER_PAGE)) {
      const line = element("tr", undefined, { role: "row", id: row.id });
      if (row.id === state.anchor) line.className = "target";
      for (const i of cells) {
        const cell = element("td", undefined, { role: "cell", class: "k-" + columns[i].kind, "data-t": columns[i].title });
        cell.innerHTML = row.html[i]; // escaped where it was made
        line.append(cell);
      }
      body.append(line);
    }
    board.tBodies[0].replaceWith(body);
    $("count").textContent = shownRows.length + " of " + rows.length + " rows";
    drawPager(pages);
    drawFacets();
    write();
    return at;
  }
  function drawHead() {
    const line = element("tr", undefined, { role: "row" });
    for (const key of state.cols) {
      const column = columns[place.get(key)], at = state.sort.findIndex((k) => k.replace(/^-/, "") === key);
      const head = element("th", undefined, { scope: "col", role: "columnheader" });
      const button = element("button", column.title, { type: "button", "data-key": key });
      if (column.help) button.title = column.help + ". Shift adds a key to the order.";
      if (at >= 0) {
        const down = state.sort[at][0] === "-";
        if (at === 0) head.setAttribute("aria-sort", down ? "descending" : "ascending");
        button.append(element("span", (down ? " ▼" : " ▲") + (state.sort.length > 1 ? at + 1 : ""), { "aria-hidden": "true" }));
      }
      head.append(button);
      line.append(head);
    }
    const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.key : null;
    board.tHead.replaceChildren(line);
    if (focused) { const again = [...line.querySelectorAll("button")].find((b) => b.dataset.key === focused); if (again) again.focus(); }
    for (const n of [1, 2]) $("sort" + n).value = state.sort[n - 1] || "";
  }
  function drawPager(pages) {
    const nav = $("pager");
    nav.replaceChildren();
    if (pages < 2) return;
    const go = function (text, page, label) {
      const button = element("button", text, { type: "button", "aria-label": label });
      button.disabled = page < 1 || page > pages;
      button.addEventListener("click", function () { state.page = page; draw(); board.scrollIntoView(); });
      nav.append(button);
    };
    go("◀", state.page - 1, "Previous page");
    nav.append(element("span", "page " + state.page + " of " + pages));
    go("▶", state.page + 1, "Next page");
  }
  function drawFacets() {
    const home = $("facets");
    const open = new Set([...home.querySelectorAll("details[open]")].map((d) => d.dataset.facet));
    const focused = document.activeElement && document.activeElement.dataset ? document.activeElement.dataset.choice : null;
    home.replaceChildren();
    report.facets.forEach(function (facet, i) {
      const counts = new Map();
      for (const row of rows) for (const v of row.facets[i]) if (!counts.has(v)) counts.set(v, 0);
      for (const row of rows) if (passes(row, facet.key)) for (const v of row.facets[i]) counts.set(v, counts.get(v) + 1);
      if (counts.size < 2) return;
      const chosen = state.facets[facet.key] || [];
      const details = element("details", undefined, { class: "chooser", "data-facet": facet.key });
      details.open = open.has(facet.key);
      details.append(element("summary", facet.title + (chosen.length ? " (" + chosen.length + ")" : "")));
      const choices = element("div", undefined, { class: "choices" });
      for (const [value, count] of [...counts].sort((a, b) => a[0].localeCompare(b[0], "en", { numeric: true }))) {
        const label = element("label", undefined, { class: "check" }), box = element("input", undefined, { type: "checkbox", "data-choice": facet.key + "=" + value });
        box.checked = chosen.includes(value);
        box.addEventListener("change", function () {
          const now = new Set(state.facets[facet.key] || []);
          if (box.checked) now.add(value); else now.delete(value);
          if (now.size) state.facets[facet.key] = [...now]; else delete state.facets[facet.key];
          state.page = 1;
          draw();
        });
        const name = element("bdi", value);
        label.append(box, " ", name, element("span", " " + count, { class: "iv" }));
        choices.append(label);
      }
      details.append(choices);
      home.append(details);
    });
    if (focused) { const again = [...home.querySelectorAll("input")].find((b) => b.dataset.choice === focused); if (again) again.focus(); }
  }

  // ---- Controls
  function sortBy(key, add) {
    const column = columns[place.get(key)], at = state.sort.findIndex((k) => k.replace(/^-/, "") === key);
    const natural = (column.descending ? "-" : "") + key, other = (column.descending ? "" : "-") + key;
    if (!add) {
      state.sort = at < 0 || state.sort.length > 1 ? [natural] : state.sort[0] === natural ? [other] : [];
    } else if (at < 0) state.sort.push(natural);
    else if (state.sort[at] === natural) state.sort[at] = other;
    else state.sort.splice(at, 1);
    state.page = 1;
    draw();
  }
  board.tHead.addEventListener("click", function (event) {
    const button = event.target.closest("button");
    if (button) sortBy(button.dataset.key, event.shiftKey);
  });
  for (const n of [1, 2]) {
    const select = $("sort" + n);
    select.append(element("option", n === 1 ? "benchmark and rank" : "—", { value: "" }));
    for (const c of columns) for (const sign of c.descending ? ["-", ""] : ["", "-"]) {
      select.append(element("option", c.title + (sign ? " ▼" : " ▲"), { value: sign + c.key }));
    }
    select.addEventListener("change", function () {
      const keys = [$("sort1").value, $("sort2").value].filter(Boolean);
      state.sort = [...new Set([...keys, ...state.sort.slice(2)])];
      state.page = 1;
      draw();
    });
  }
  let waiting = 0;
  $("search").addEventListener("input", function () {
    clearTimeout(waiting);
    waiting = setTimeout(function () { state.q = $("search").value.trim(); state.page = 1; draw(); }, 120);
  });
  $("whole").addEventListener("change", function () { state.whole = $("whole").checked; state.page = 1; draw(); });
  $("reset").addEventListener("click", function () { state = fresh(); controls(); draw(); });
  function controls() {
    $("search").value = state.q;
    $("whole").checked = state.whole;
    const home = $("columns");
    home.replaceChildren();
    for (const group of [...new Set(columns.map((c) => c.group))]) {
      const set = element("fieldset");
      set.append(element("legend", group));
      for (const c of columns.filter((one) => one.group === group)) {
        const label = element("label", undefined, { class: "check" }), box = element("input", undefined, { type: "checkbox" });
        box.checked = state.cols.includes(c.key);
        box.value = c.key;
        box.addEventListener("change", function () {
          const now = new Set(state.cols);
          if (box.checked) now.add(c.key); else if (now.size > 1) now.delete(c.key); else box.checked = true;
          state.cols = columns.map((one) => one.key).filter((k) => now.has(k));
          draw();
        });
        label.append(box, " ", element("bdi", c.title));
        if (c.help) label.title = c.help;
        set.append(label);
      }
      home.append(set);
    }
  }
  board.addEventListener("click", function (event) {
    const link = event.target.closest("a.anchor");
    if (!link) return;
    event.preventDefault();
    state.anchor = link.getAttribute("href").slice(1);
    draw();
    const again = document.getElementById(state.anchor);
    if (again) again.querySelector("a.anchor").focus();
  });

  // ---- Downloads
  const escapes = {
    csv: (v) => { let t = v === null ? "" : String(v); if (typeof v === "string" && /^\s*[-=+@\t\r]/.test(t)) t = "'" + t; return /[",\n\r]/.test(t) ? '"' + t.replace(/"/g, '""') + '"' : t; },
    markdown: (v) => v === null ? "" : String(v).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/[\\|`[\]]/g, "\\$&").replace(/\s+/g, " "),
    latex: (v) => v === null ? "" : String(v).replace(/\\/g, "\u0000").replace(/[&%$#_{}]/g, "\\$&").replace(/\u0000/g, "\\textbackslash{}").replace(/~/g, "\\textasciitilde{}").replace(/\^/g, "\\textasciicircum{}").replace(/</g, "\\textless{}").replace(/>/g, "\\textgreater{}"),
  };
  function wide() { // columns with their intervals' ends behind them
    const out = [];
    for (const key of state.cols) {
      const i = place.get(key);
      out.push([key, (r) => r.data[i]]);
      if (rows.some((r) => r.ends[i])) for (const e of [0, 1]) out.push([key + ["_lo", "_hi"][e], (r) => r.ends[i] ? r.ends[i][e] : null]);
    }
    return out;
  }
  function short(row, key) { // as a paper has it
    const i = place.get(key), v = row.data[i], ends = row.ends[i];
    const digits = (x) => typeof x === "number" && !Number.isInteger(x) ? (columns[i].kind === "measure" ? x.toPrecision(4) : columns[i].kind === "eps" ? x.toPrecision(4) : x.toFixed(1)) : x;
    return v === null || !ends ? digits(v) : digits(v) + " [" + digits(ends[0]) + ", " + digits(ends[1]) + "]";
  }
  const forms = {
    csv: function () {
      const cols = wide();
      return [cols.map((c) => escapes.csv(c[0])), ...shownRows.map((r) => cols.map((c) => escapes.csv(c[1](r))))].map((l) => l.join(",")).join("\n") + "\n";
    },
    json: function () { const cols = wide(); return JSON.stringify(shownRows.map((r) => Object.fromEntries(cols.map((c) => [c[0], c[1](r)]))), null, 1) + "\n"; },
    markdown: function () {
      const line = (cells) => "| " + cells.join(" | ") + " |", keys = state.cols, esc = escapes.markdown;
      return [line(keys.map((k) => esc(columns[place.get(k)].title))), line(keys.map(() => "---")), ...shownRows.map((r) => line(keys.map((k) => esc(short(r, k)))))].join("\n") + "\n";
    },
    latex: function () {
      const keys = state.cols, esc = escapes.latex, line = (cells) => cells.join(" & ") + " \\\\";
      return ["% Needs \\usepackage{booktabs}.", "\\begin{tabular}{" + keys.map((k) => typeof rows[0].data[place.get(k)] === "number" ? "r" : "l").join("") + "}", "\\toprule", line(keys.map((k) => esc(columns[place.get(k)].title))), "\\midrule", ...shownRows.map((r) => line(keys.map((k) => esc(short(r, k)))).replace(/^([[*])/, "{$1}")), "\\bottomrule", "\\end{tabular}"].join("\n") + "\n";
    },
  };
  for (const button of document.querySelectorAll("[data-form]")) button.addEventListener("click", function () {
    const form = button.dataset.form, link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([forms[form]()], { type: "text/plain;charset=utf-8" }));
    link.download = "leaderboard." + { csv: "csv", json: "json", latex: "tex", markdown: "md" }[form];
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });

  // ---- Begin
  function begin() {
    state = read();
    controls();
    const at = draw();
    if (at >= 0) {
      state.page = Math.floor(at / PER_PAGE) + 1;
      draw();
      document.getElementById(state.anchor).scrollIntoView({ block: "center" });
    } else if (state.anchor && $(state.anchor)) $(state.anchor).scrollIntoView();
  }
  addEventListener("hashchange", begin);
  begin();
})();
