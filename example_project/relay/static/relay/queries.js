// Follows the watched queries: presses buttons without leaving the page, and asks once a second what is kept.
// No library, nothing inline. Without it the page is complete, and up to date on reload.
"use strict";

(() => {
  const root = document.querySelector("[data-queries]");
  const LABELS = { closed: "Redis up", open: "Degraded", half_open: "Degraded", recovering: "Recovering", memory: "In memory" };
  const STATES = [...Object.keys(LABELS), "lost"];
  const SOURCES = { database: "computed", error: "failed" };
  const one = (selector) => root.querySelector(selector);

  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const setText = (node, text) => {
    // Only what changed: a screen reader says a status again whenever its text is set.
    if (node && node.textContent !== String(text)) node.textContent = text;
  };

  const setState = (node, state) => {
    STATES.forEach((name) => node.classList.toggle(`is-${name}`, name === state));
  };

  function showState(now) {
    ["title", "headline", "detail"].forEach((name) => setText(one(`[data-show=${name}]`), now[name]));
    setState(one("[data-hero]"), now.state);
    const pill = document.querySelector("[data-live-pill]");
    setState(pill, now.state);
    setText(pill.querySelector("[data-live=label]"), LABELS[now.state] || now.state);
    showButtons(now.power);
  }

  function showButtons(power) {
    const buttons = [...root.querySelectorAll("[data-when]")];
    const focused = buttons.find((button) => button === document.activeElement);
    buttons.forEach((button) => { button.disabled = !button.dataset.when.split(" ").includes(power); });
    // Who has just pressed Stop by keyboard goes on with what can be pressed now.
    if (focused?.disabled) buttons.find((button) => !button.disabled)?.focus();
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
      const answer = await fetch(root.dataset.stateUrl, { headers: { Accept: "application/json" } });
      if (!answer.ok) throw new Error(String(answer.status));
      show(await answer.json());
    } catch {
      showLost();
    }
  }

  async function act(event) {
    event.preventDefault();
    const form = event.currentTarget;
    const body = new FormData(form, event.submitter);
    form.setAttribute("aria-busy", "true");
    try {
      // Not `form.action`: that is the buttons, which have this name.
      const answer = await fetch(form.getAttribute("action"), { method: "POST", body, headers: { Accept: "application/json" } });
      refuse(answer.status === 400 ? await answer.text() : "");
      if (answer.status !== 400 && !answer.ok) throw new Error(String(answer.status));
      await ask();
    } catch {
      showLost();
    } finally {
      form.removeAttribute("aria-busy");
    }
  }

  async function follow() {
    if (!document.hidden) await ask();
    setTimeout(follow, 1000);
  }

  root.querySelectorAll("form[data-act]").forEach((form) => form.addEventListener("submit", act));
  document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
  follow();
})();
