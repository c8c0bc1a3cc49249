// Follows the cache's state: asks for it once a second and puts it where it is shown.
// No library, nothing inline. Without it the page is complete, and up to date on reload.
"use strict";

(() => {
  const { LABELS, answerOf, element, follow, sendForms, setState, setText, showButtons } = following;
  const root = document.querySelector("[data-playground]");
  const SVG = "http://www.w3.org/2000/svg";
  const [FLOOR, CEILING] = [0.02, 400]; // ms at the bottom and the top of the curve
  const one = (selector) => root.querySelector(selector);

  const value = (live, path) => path.split(".").reduce((part, name) => (part == null ? part : part[name]), live);

  function showTexts(live) {
    const shown = { ...live, label: LABELS[live.state] || live.state, totals: { ...live.totals, local: live.totals.fallback + live.totals.memory } };
    document.querySelectorAll("[data-live]").forEach((node) => {
      const text = value(shown, node.dataset.live);
      if (text != null) setText(node, typeof text === "number" ? text.toLocaleString("en") : text);
    });
  }

  function showStates(live) {
    setState(one("[data-hero]"), live.state);
    setState(document.querySelector("[data-live-pill]"), live.state);
    one("[data-pending]").classList.toggle("waiting", live.pending > 0);
    showButtons(root, live.power);
    if (!live.board) return;
    one("[data-verdict]")?.classList.toggle("broken", live.board.stale > 0);
    const source = one("[data-source]");
    if (source) source.className = `badge from-${live.board.source}`;
  }

  function height(ms) {
    const part = Math.log(Math.min(Math.max(ms, FLOOR), CEILING) / FLOOR) / Math.log(CEILING / FLOOR);
    return Math.max(2, part * 120);
  }

  function showCurve(live) {
    const first = 90 - live.sparks.length;
    const bars = live.sparks.map(([ms, source], index) => {
      const bar = document.createElementNS(SVG, "rect");
      const tall = height(ms);
      const place = { x: (first + index) * 10 + 1.5, y: 120 - tall, width: 7, height: tall, rx: 1.5, class: `bar-${source}` };
      Object.entries(place).forEach(([name, setting]) => bar.setAttribute(name, setting));
      const title = document.createElementNS(SVG, "title");
      title.textContent = `${ms} ms, ${source}`;
      bar.append(title);
      return bar;
    });
    one("[data-bars]").replaceChildren(...bars);
  }

  function showReads(live) {
    const rows = live.reads.map((read) => {
      const row = element("tr");
      const key = element("td", "key");
      const name = element("span", "", read.key);
      name.title = read.key;
      key.append(name);
      const from = element("td");
      from.append(element("span", `badge from-${read.source}`, read.source));
      row.append(key, element("td", "op", read.op), element("td", "page", read.page), from, element("td", "number", read.ms.toFixed(2)));
      return row;
    });
    one("[data-reads]").replaceChildren(...rows);
  }

  function showEvents(live) {
    if (!live.events.length) return;
    const items = live.events.map((event) => {
      const item = element("li", `event-${event.kind}`);
      item.append(element("time", "", new Date(event.at * 1000).toLocaleTimeString()), event.text);
      return item;
    });
    one("[data-events]").replaceChildren(...items);
  }

  function show(live) {
    [showTexts, showStates, showCurve, showReads, showEvents].forEach((part) => part(live));
  }

  function showLost() {
    setState(one("[data-hero]"), "lost");
    setText(one("[data-live=headline]"), "The site itself does not answer");
    setText(one("[data-live=detail]"), "The demo has ended, or this page lost its way to it.");
  }

  async function ask() {
    const visit = one("[data-visit]")?.checked ? "1" : "0";
    try {
      show(await answerOf(`${root.dataset.stateUrl}?visit=${visit}`));
    } catch {
      showLost();
    }
  }

  sendForms(root.querySelectorAll("form[data-act]"), async (url, options) => show(await answerOf(url, options)), showLost);
  follow(ask);
})();
