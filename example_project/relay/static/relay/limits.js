// Hammers one endpoint and shows what becomes of each request.
// No library, nothing inline. What is shown of a decision is in the response's X-Relay-Decision.
"use strict";

(() => {
  const { answerOf, element, follow, sendForms, setText, showButtons, showPill } = following;
  const root = document.querySelector("[data-limits]");
  const SVG = "http://www.w3.org/2000/svg";
  const PILL = { redis: ["closed", "Redis up"], host: ["open", "Degraded"], process: ["memory", "In memory"] };
  const [SHOWN, ROWS, IN_FLIGHT] = [90, 9, 8];
  const one = (selector) => root.querySelector(selector);
  const cards = [...root.querySelectorAll("[data-endpoint]")];
  const standings = {}; // by policy: what was told last, and when
  let hammer = null; // the timer
  let run = newRun();
  let decider = "redis";

  function newRun() {
    return { sent: 0, passed: 0, denied: 0, flying: 0, answers: [], passages: [], most: 0 };
  }

  const shape = (place) => {
    const made = document.createElementNS(SVG, "rect");
    Object.entries(place).forEach(([name, setting]) => made.setAttribute(name, setting));
    return made;
  };

  const chosen = () => cards.find((card) => card.querySelector("input").checked);
  const seconds = (value) => (value == null ? "never" : value >= 120 ? `${Math.ceil(value / 60)} min` : value >= 10 ? `${Math.ceil(value)} s` : `${value.toFixed(1)} s`);
  const windowName = (value) => ({ 60: "minute", 900: "15 min", 3600: "hour" })[value] || `${value} s`;
  const token = () => one("[name=csrfmiddlewaretoken]").value;

  // What is asked

  const BODIES = {
    chat: () => new URLSearchParams({ body: `Hammered at ${new Date().toLocaleTimeString("en")}` }),
    auth: () => new URLSearchParams({ username: root.dataset.stranger, password: "guess" }),
    upload: () => {
      const form = new FormData();
      form.append("file", new File(["Hammered."], "hammered.txt", { type: "text/plain" }));
      return form;
    },
  };

  async function send() {
    const card = chosen();
    const current = run;
    if (current.flying >= IN_FLIGHT) return;
    const began = performance.now();
    const options = { headers: { Accept: "application/json" }, cache: "no-store" };
    if (card.dataset.method === "POST") {
      options.method = "POST";
      options.headers["X-CSRFToken"] = token();
      options.body = BODIES[card.dataset.endpoint]();
    }
    current.flying += 1;
    try {
      const response = await fetch(card.dataset.path, options);
      const told = JSON.parse(response.headers.get("X-Relay-Decision"));
      take(current, card.dataset.endpoint, { status: response.status, retryAfter: response.headers.get("Retry-After"), told, began, ended: performance.now() });
    } catch {
      lost();
    } finally {
      current.flying -= 1;
    }
  }

  function take(current, name, answer) {
    if (current !== run) return; // of an endpoint that is not looked at any more
    current.sent += 1;
    if (answer.told?.allowed) {
      current.passed += 1;
      current.passages.push(answer);
    } else current.denied += 1;
    // In the order in which they were sent: a password takes its time, a 429 none.
    current.answers = [...current.answers, answer].sort((a, b) => a.began - b.began).slice(-SHOWN);
    if (answer.told) {
      remember(name, answer.told);
      countMost(current, answer.told.window * 1000);
    }
    showRun();
  }

  function countMost(current, span) {
    // Certainly in one window: from when the first was sent to when the last was answered.
    const last = current.passages.at(-1);
    if (!last) return;
    current.passages = current.passages.filter((each) => last.ended - each.began < span);
    current.most = Math.max(current.most, current.passages.length);
  }

  // What is shown

  function remember(name, told) {
    standings[name] = { told, at: performance.now() };
    showCard(name);
  }

  function showCard(name) {
    const card = cards.find((each) => each.dataset.endpoint === name);
    const { told, at } = standings[name];
    const reset = told.reset - (performance.now() - at) / 1000;
    setText(card.querySelector("[data-left]"), told.remaining);
    setText(card.querySelector("[data-more]"), told.remaining === told.limit ? "all of it there" : reset > 0 ? `more in ${seconds(reset)}` : "more any moment");
    card.classList.toggle("spent", told.remaining === 0);
    showGauge(card.querySelector("[data-gauge]"), told);
    if (card === chosen()) {
      setText(one("[data-window]"), windowName(told.window));
      setText(one("[data-limit-shown]"), told.limit);
    }
  }

  function showGauge(gauge, told) {
    const cell = 300 / told.limit;
    const source = told.source === "cache" ? decider : told.source;
    gauge.replaceChildren(...Array.from({ length: told.limit }, (_, index) => shape({
      x: index * cell + 0.8, y: 0, width: Math.max(cell - 1.6, 1), height: 14, class: index < told.remaining ? `bar-${source}` : "bar-gone",
    })));
  }

  function showRun() {
    ["sent", "passed", "denied"].forEach((name) => setText(one(`[data-count=${name}]`), run[name].toLocaleString("en")));
    const standing = standings[chosen().dataset.endpoint];
    setText(one("[data-most]"), run.most);
    one("[data-proof]").classList.toggle("broken", Boolean(standing) && run.most > standing.told.limit);
    showLane();
    showAnswers();
  }

  function showLane() {
    const first = SHOWN - run.answers.length;
    one("[data-lane]").replaceChildren(...run.answers.map(({ status, told }, index) => {
      const passed = told?.allowed;
      const tall = passed ? Math.max(8, (120 * (told.remaining + 1)) / told.limit) : 16;
      const kind = passed ? told.source : "denied";
      const bar = shape({ x: (first + index) * 10 + 1.5, y: 120 - tall, width: 7, height: tall, rx: 1.5, class: `bar-${kind}` });
      const title = document.createElementNS(SVG, "title");
      title.textContent = told ? `${status}, ${told.remaining} left, decided by ${told.source}` : String(status);
      bar.append(title);
      return bar;
    }));
  }

  function showAnswers() {
    const rows = run.answers.slice(-ROWS).reverse().map(({ status, told, retryAfter, began, ended }) => {
      const row = element("tr");
      const state = element("td");
      state.append(element("span", `badge ${status === 429 || status >= 500 ? "denied" : "passed"}`, status));
      const source = element("td");
      if (told) source.append(element("span", `badge from-${told.source}`, told.source === "cache" ? "remembered" : told.source));
      row.append(state, source, element("td", "number", told ? told.remaining : ""), element("td", "number", retryAfter ? seconds(Number(retryAfter)) : ""), element("td", "number", (ended - began).toFixed(0)));
      return row;
    });
    if (rows.length) one("[data-answers]").replaceChildren(...rows);
  }

  function showState(state) {
    Object.keys(PILL).forEach((who) => one("[data-hero]").classList.toggle(`decided-by-${who}`, who === state.who));
    one("[data-hero]").classList.remove("is-lost");
    decider = state.who;
    setText(one("[data-show=headline]"), state.headline);
    setText(one("[data-show=detail]"), state.detail);
    showPill(...PILL[state.who]);
    showButtons(root, state.power);
    Object.entries(state.standings).forEach(([name, told]) => { if (told) remember(name, told); });
  }

  function lost() {
    stop();
    one("[data-hero]").classList.add("is-lost");
    setText(one("[data-show=headline]"), "The site itself does not answer");
    setText(one("[data-show=detail]"), "The demo has ended, or this page lost its way to it.");
  }

  // What is pressed

  function start() {
    const beat = () => {
      send();
      hammer = setTimeout(beat, 1000 / one("[data-speed]").value);
    };
    beat();
    showGo();
  }

  function stop() {
    clearTimeout(hammer);
    hammer = null;
    showGo();
  }

  function showGo() {
    const go = one("[data-go]");
    setText(go, hammer === null ? "Start" : "Stop");
    go.setAttribute("aria-pressed", String(hammer !== null));
  }

  function choose() {
    const card = chosen();
    run = newRun();
    one("[data-answers]").replaceChildren();
    setText(one("[data-target]"), `${card.dataset.method} ${card.dataset.path}`);
    const policy = one("[data-policy]");
    if (policy) policy.value = card.dataset.endpoint;
    if (standings[card.dataset.endpoint]) showCard(card.dataset.endpoint);
    showRun();
  }

  async function post(url, options, form) {
    await answerOf(url, options);
    if (form.matches("[data-begin-anew]")) choose();
    await ask();
  }

  async function ask() {
    try {
      showState(await answerOf(root.dataset.stateUrl));
    } catch {
      lost();
    }
  }

  one("[data-go]").addEventListener("click", () => (hammer === null ? start() : stop()));
  one("[data-speed]").addEventListener("input", (event) => setText(one("[data-speed-shown]"), event.target.value));
  cards.forEach((card) => card.querySelector("input").addEventListener("change", choose));
  sendForms(root.querySelectorAll("form[data-act], form[data-begin-anew]"), post, lost);
  setText(one("[data-speed-shown]"), one("[data-speed]").value); // a reload keeps what was chosen
  choose();
  follow(ask);
})();
