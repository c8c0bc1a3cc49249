// Follows the watched queries: presses buttons without leaving the page, and asks once a second what is kept.
// No library, nothing inline. Without it the page is complete, and up to date on reload.
"use strict";

(() => {
  const { answerOf, element, follow, request, sendForms, setState, setText, showButtons, showPill } = following;
  const root = document.querySelector("[data-queries]");
  const SOURCES = { database: "computed", error: "failed" };
  const one = (selector) => root.querySelector(selector);

  function showState(now) {
    ["title", "headline", "detail"].forEach((name) => setText(one(`[data-show=${name}]`), now[name]));
    setState(one("[data-hero]"), now.state);
    showPill(now.state);
    showButtons(root, now.power);
  }

  function showRow(row) {
    const shown = one(`[data-row="${row.name}"]`);
    if (!shown) return;
    const source = shown.querySelector("[data-source]");
    source.className = row.source ? `badge from-${row.source}` : "badge";
    setText(source, SOURCES[row.source] || row.source || "–");
    setText(shown.querySelector("[data-ms]"), row.ms === null ? "–" : row.ms.toFixed(2));
    setText(shown.querySelector("[data-said]"), row.said);
    setText(shown.querySelector("[data-kept]"), `${row.kept} of ${row.keys}`);
    shown.classList.toggle("gone", row.kept === 0);
  }

  function showHappened(happened) {
    if (!happened.length || !one("[data-happened]")) return;
    const items = happened.map((each) => {
      const item = element("li", each.forgotten.length ? "event-opened" : "");
      item.append(element("time", "", new Date(each.at * 1000).toLocaleTimeString()), each.text);
      if (each.forgotten.length) item.append(element("span", "keys", each.forgotten.join(" · ")));
      return item;
    });
    one("[data-happened]").replaceChildren(...items);
  }

  function showCrowd(crowd) {
    if (!crowd.threads) return;
    const verdict = one("[data-crowd]");
    setText(verdict, `${crowd.computations} computed, for ${crowd.threads}; slowest ${crowd.slowest.toFixed(0)} ms`);
    verdict.classList.toggle("broken", crowd.computations !== 1);
  }

  function show(now) {
    showState(now);
    now.rows.forEach(showRow);
    showHappened(now.happened);
    if (one("[data-crowd]")) showCrowd(now.crowd);
  }

  function showLost() {
    setState(one("[data-hero]"), "lost");
    setText(one("[data-show=headline]"), "The site itself does not answer");
    setText(one("[data-show=detail]"), "The demo has ended, or this page lost its way to it.");
  }

  function refuse(text) {
    const said = one("[data-refused]");
    said.hidden = !text;
    setText(said, text);
  }

  async function ask() {
    try {
      show(await answerOf(root.dataset.stateUrl));
    } catch {
      showLost();
    }
  }

  async function send(url, options) {
    const answer = await request(url, options);
    refuse(answer.status === 400 ? await answer.text() : "");
    if (answer.status !== 400 && !answer.ok) throw new Error(String(answer.status));
    await ask();
  }

  sendForms(root.querySelectorAll("form[data-act]"), send, showLost);
  follow(ask);
})();
