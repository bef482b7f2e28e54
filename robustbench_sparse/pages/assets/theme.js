"use strict";
// Before anything is painted: the theme that was chosen, and that scripts run.
(function () {
  const root = document.documentElement;
  root.classList.add("js");
  let chosen = null;
  try { chosen = localStorage.getItem("rbs-theme"); } catch (e) { /* a page from disk may have no storage */ }
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;
  const dark = () => root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  window.isDark = dark;
  document.addEventListener("DOMContentLoaded", function () {
    const button = document.getElementById("theme");
    const say = () => button.setAttribute("aria-label", dark() ? "To light colours" : "To dark colours");
    say();
    button.addEventListener("click", function () {
      root.dataset.theme = dark() ? "light" : "dark";
      try { localStorage.setItem("rbs-theme", root.dataset.theme); } catch (e) { /* as above */ }
      say();
      document.dispatchEvent(new Event("themechange"));
    });
    const source = document.body.dataset.live;
    if (!source || !location.protocol.startsWith("http")) return;
    let version = null;
    const ask = async function () {
      try {
        const now = (await (await fetch(source, { cache: "no-store" })).json()).version;
        if (version !== null && now !== version) { location.reload(); return; }
        version = now;
        document.querySelector(".live").textContent = "live";
      } catch (e) { document.querySelector(".live").textContent = "not served any more"; }
      setTimeout(ask, 500);
    };
    ask();
  });
})();
