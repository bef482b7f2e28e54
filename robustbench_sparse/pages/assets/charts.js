"use strict";
// Charts that answer: Vega draws them when they come into sight, in the page's colours; and a trade-off of any two columns.
(function () {
  const report = window.REPORT, specs = window.CHARTS;
  const $ = (id) => document.getElementById(id);
  const CHEAP = /parameters|macs|seconds|latency|mse|detectable|^rank/;

  function themed() {
    const ink = window.isDark() ? "#d9dee5" : "#22272e", grid = window.isDark() ? "#39424e" : "#dde1e6";
    return {
      background: null, view: { stroke: null },
      axis: { labelColor: ink, titleColor: ink, gridColor: grid, domainColor: grid, tickColor: grid },
      legend: { labelColor: ink, titleColor: ink, symbolBaseStrokeColor: ink, symbolBaseFillColor: ink, labelLimit: 280 }, title: { color: ink }, header: { labelColor: ink, titleColor: ink },
    };
  }
  // The same colours where they lie on a dark page.
  const BRIGHT = { "#0072B2": "#6CB8EA", "#D55E00": "#FF9B54", "#009E73": "#4CD3A5", "#CC79A7": "#E8A5CB", "#56B4E9": "#B5DFFF", "#E69F00": "#FFC247", "#7F7F7F": "#B0B0B0", "#000000": "#FFFFFF" };
  function coloured(spec) {
    if (!window.isDark()) return spec;
    return JSON.parse(JSON.stringify(spec), (key, value) => (typeof value === "string" && BRIGHT[value]) || value);
  }
  function embed(home, plain) {
    const spec = coloured(plain);
    home.classList.remove("paper");
    // "ast": expressions are interpreted, so that the page needs no right to make code of texts.
    return window.vegaEmbed(home, spec, {
      ast: true, config: themed(), renderer: "svg", actions: { export: true, source: false, compiled: false, editor: false },
    }).then(function () {
      const menu = home.querySelector("summary"); // which has a picture for its only name
      if (menu) menu.setAttribute("aria-label", "Save this chart");
    }).catch(function (e) { home.textContent = "This chart cannot be drawn: " + e.message; });
  }
  const seen = new Map();
  const watch = new IntersectionObserver(function (entries) {
    for (const entry of entries) {
      const home = entry.target;
      if (!entry.isIntersecting || seen.has(home)) continue;
      seen.set(home, specs[home.dataset.chart]);
      embed(home, seen.get(home));
    }
  }, { rootMargin: "200px" });
  for (const home of document.querySelectorAll("[data-chart]")) watch.observe(home);
  document.addEventListener("themechange", function () { for (const [home, spec] of seen) embed(home, spec); draw(); });

  // ---- Any two columns
  const numeric = report.columns.map((c, i) => [c, i]).filter(([c, i]) => report.rows.some((r) => typeof r.data[i] === "number") && c.key !== "seed");
  const names = new Map(numeric.map(([c, i]) => [c.key, i]));
  const boards = [...new Set(report.rows.map((r) => r.facets[0][0]))];
  const training = report.facets.findIndex((f) => f.key === "training");
  const column = (key) => report.columns.findIndex((c) => c.key === key);
  function fill(select, values, chosen) {
    for (const [value, text] of values) {
      const option = document.createElement("option");
      option.value = value;
      option.textContent = text;
      option.selected = value === chosen;
      select.append(option);
    }
    select.addEventListener("change", draw);
  }
  const given = new URLSearchParams(location.hash.slice(1));
  fill($("of"), [["", "all"], ...boards.map((b) => [b, b])], given.get("of") ?? boards[0]);
  fill($("x"), numeric.map(([c]) => [c.key, c.title]), given.get("x") || "weight_sparsity");
  fill($("y"), numeric.map(([c]) => [c.key, c.title]), given.get("y") || "worst");

  function front(points, xUp, yUp) {
    const order = points.filter((p) => !p.out).sort((a, b) => (xUp ? b.x - a.x : a.x - b.x) || (yUp ? b.y - a.y : a.y - b.y));
    let best = -Infinity;
    const out = order.filter((p) => { const y = yUp ? p.y : -p.y; if (y <= best) return false; best = y; return true; });
    return out.sort((a, b) => a.x - b.x);
  }
  function draw() {
    const of = $("of").value, x = $("x").value, y = $("y").value, xi = names.get(x), yi = names.get(y);
    history.replaceState(null, "", "#" + new URLSearchParams({ of, x, y }));
    const zeros = column("weight_sparsity"), verdict = column("verdict"), run = column("run"), seed = column("seed");
    const points = report.rows.filter((r) => (!of || r.facets[0][0] === of) && typeof r.data[xi] === "number" && typeof r.data[yi] === "number").map((r) => ({
      x: r.data[xi], y: r.data[yi], xlo: r.ends[xi] ? r.ends[xi][0] : r.data[xi], xhi: r.ends[xi] ? r.ends[xi][1] : r.data[xi],
      ylo: r.ends[yi] ? r.ends[yi][0] : r.data[yi], yhi: r.ends[yi] ? r.ends[yi][1] : r.data[yi],
      run: r.data[run], seed: seed < 0 ? 0 : r.data[seed], training: r.facets[training][0] || "", zeros: zeros < 0 ? 0 : r.data[zeros] || 0, out: r.data[verdict] === "refuted",
    }));
    // Titles are texts of ours or names of columns; they go in as data, never as expressions.
    const spec = JSON.parse(JSON.stringify(specs.explorer)), titles = { x: report.columns[xi].title, y: report.columns[yi].title };
    const logarithmic = (axis, key) => /parameters|macs|seconds|latency/.test(key) && points.length && points.every((p) => p[axis] > 0);
    for (const layer of spec.layer) for (const [axis, key] of [["x", x], ["y", y]]) {
      if (!layer.encoding[axis]) continue;
      layer.encoding[axis].title = titles[axis];
      if (logarithmic(axis, key)) layer.encoding[axis].scale = { type: "log", nice: true };
    }
    spec.datasets = { points, front: front(points, !CHEAP.test(x), !CHEAP.test(y)) };
    embed($("explorer"), spec);
  }
  draw();
})();
