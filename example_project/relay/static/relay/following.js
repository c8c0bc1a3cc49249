// What the pages share that follow something: they show what is asked once a second, and send forms without
// leaving. No library, nothing inline. Loaded before the script of the page.
"use strict";

const following = (() => {
  const LABELS = { closed: "Redis up", open: "Degraded", half_open: "Degraded", recovering: "Recovering", memory: "In memory" };
  const STATES = [...Object.keys(LABELS), "lost"];

  function element(name, className, text) {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function setText(node, text) {
    // Only what changed: a screen reader says a status again whenever its text is set.
    if (node && node.textContent !== String(text)) node.textContent = text;
  }

  function setState(node, state) {
    STATES.forEach((name) => node.classList.toggle(`is-${name}`, name === state));
  }

  function showPill(state, label = LABELS[state] || state) {
    const pill = document.querySelector("[data-live-pill]");
    setState(pill, state);
    setText(pill.querySelector("[data-live=label]"), label);
  }

  function showButtons(root, power) {
    const buttons = [...root.querySelectorAll("[data-when]")];
    const focused = buttons.find((button) => button === document.activeElement);
    buttons.forEach((button) => { button.disabled = !button.dataset.when.split(" ").includes(power); });
    // Who has just pressed Stop by keyboard goes on with what can be pressed now.
    if (focused?.disabled) buttons.find((button) => !button.disabled)?.focus();
  }

  function request(url, options = {}) {
    return fetch(url, { ...options, headers: { Accept: "application/json" } });
  }

  async function answerOf(url, options) {
    const answer = await request(url, options);
    if (!answer.ok) throw new Error(`${url} answered ${answer.status}`);
    return answer.json();
  }

  // Sends forms by `send(url, options, form)`; `lost()` where that fails.
  function sendForms(forms, send, lost) {
    forms.forEach((form) => form.addEventListener("submit", async (event) => {
      event.preventDefault();
      const body = new FormData(form, event.submitter);
      form.setAttribute("aria-busy", "true");
      try {
        // Not `form.action`: that is the buttons, which have this name.
        await send(form.getAttribute("action"), { method: "POST", body }, form);
      } catch {
        lost();
      } finally {
        form.removeAttribute("aria-busy");
      }
    }));
  }

  // Calls `ask()` once a second while somebody looks, and at once when they look again.
  function follow(ask) {
    const again = async () => {
      if (!document.hidden) await ask();
      setTimeout(again, 1000);
    };
    document.addEventListener("visibilitychange", () => { if (!document.hidden) ask(); });
    again();
  }

  return { LABELS, answerOf, element, follow, request, sendForms, setState, setText, showButtons, showPill };
})();
