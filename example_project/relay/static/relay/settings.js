// Follows the store and the API keys in it: asks once a second, and sends the buttons of Redis without leaving.
// No library, nothing inline. Without it the page is complete, and up to date on reload.
"use strict";

(() => {
  const { follow, request, sendForms, setState, setText, showButtons, showPill } = following;
  const root = document.querySelector("[data-settings]");
  const one = (selector) => root.querySelector(selector);

  function show(now) {
    setState(one("[data-hero]"), now.state);
    ["headline", "detail"].forEach((name) => setText(one(`[data-show=${name}]`), now[name]));
    setText(one("[data-show=where]"), now.where || now.provider);
    showPill(now.cache);
    showButtons(root, now.power);
    if (now.keys) showKeys(now.keys);
    // What could not be shown is there again.
    if (now.keys && "away" in root.dataset) location.replace(root.dataset.pageUrl);
  }

  function showKeys(keys) {
    root.querySelectorAll("[data-key]").forEach((row) => {
      const key = keys.find((each) => each.id === row.dataset.key);
      row.classList.toggle("gone", !key);
      setText(row.querySelector("[data-lasts]"), key ? key.lasts : "gone");
      if (key) setText(row.querySelector("[data-uses]"), key.uses.toLocaleString("en"));
    });
  }

  function lost() {
    setState(one("[data-hero]"), "lost");
    setText(one("[data-show=headline]"), "The site itself does not answer");
    setText(one("[data-show=detail]"), "The demo has ended, or this page lost its way to it.");
  }

  async function ask() {
    try {
      const answer = await request(root.dataset.stateUrl);
      if (!answer.ok && answer.status !== 503) throw new Error(String(answer.status));
      show(await answer.json());
    } catch {
      lost();
    }
  }

  async function send(url, options) {
    const answer = await request(url, options);
    if (!answer.ok) throw new Error(String(answer.status));
    await ask();
  }

  sendForms(root.querySelectorAll("form[data-act]"), send, lost);
  follow(ask);
})();
