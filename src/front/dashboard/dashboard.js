// The dashboard: the public API and nothing else. Everything live comes over one /v1/ws; lists are
// asked for again every two seconds while their part is shown. Text from the daemon only ever becomes
// text nodes.

const $ = (id) => document.getElementById(id);
const el = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null) node.setAttribute(name, value);
  }
  node.append(...children.filter((c) => c !== null && c !== undefined));
  return node;
};
const svg = (tag, attributes, ...children) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
const pill = (text) => el("span", { class: `pill ${text}` }, text ?? "");
const pathOf = (name) => name.split("/").map(encodeURIComponent).join("/");
const short = (id) => (id ? String(id).slice(0, 8) : "");
const seconds = (s) => (s < 90 ? `${s.toFixed(s < 10 ? 1 : 0)} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`);
const ago = (time) => (time ? `${seconds(Math.max(0, (Date.now() - Date.parse(time)) / 1000))} ago` : "");
const number = (n) => (Math.abs(n) >= 1e6 ? `${(n / 1e6).toFixed(1)} M` : Math.abs(n) >= 1e4 ? `${(n / 1e3).toFixed(1)} k` : Number.isInteger(n) ? String(n) : n.toFixed(n < 1 ? 4 : 1));

// ---------------------------------------------------------------- asking

let token = sessionStorage.getItem("token") ?? "";

async function ask(path, options = {}) {
  const headers = { accept: "application/json", ...options.headers };
  if (token) headers.authorization = `Bearer ${token}`;
  const answer = await fetch(path, { ...options, headers, cache: "no-store" });
  if (!answer.ok && answer.status !== 503) {
    const problem = await answer.json().catch(() => ({}));
    throw Object.assign(new Error(problem.detail || `${path}: ${answer.status}`), { status: answer.status });
  }
  return answer;
}
const askJson = async (path, options) => {
  const text = await (await ask(path, options)).text();
  return text ? JSON.parse(text) : null;
};
const send = (method, path, body) =>
  askJson(path, { method, headers: { "content-type": "application/json" }, body: JSON.stringify(body ?? {}) });

function tell(error) {
  $("problem").hidden = !error;
  if (!error) return;
  const advice = error.status === 401 ? " Give a token above." : error.status === 403 ? " This token may not do that." : "";
  $("problem").textContent = error.message + advice;
}
const act = async (what) => {
  try {
    await what();
    tell(null);
  } catch (error) {
    tell(error);
  }
};

// ---------------------------------------------------------------- one socket

const socket = { ws: null, wait: 250, next: 1, follow: null };

function say(message) {
  if (socket.ws?.readyState === WebSocket.OPEN) socket.ws.send(JSON.stringify({ id: socket.next++, ...message }));
}

async function connect() {
  const protocols = ["towpath.v1"];
  // A browser cannot set headers on a WebSocket; the token travels as a subprotocol that is never answered.
  if (token) protocols.push(`towpath.bearer.${token}`);
  const ws = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/ws`, protocols);
  socket.ws = ws;
  ws.onopen = () => {
    socket.wait = 250;
    setLink("live", "good");
    if (socket.follow) followNow();
  };
  ws.onmessage = (frame) => heard(JSON.parse(frame.data));
  ws.onclose = () => {
    if (socket.ws !== ws) return;
    setLink("link lost, coming back", "busy");
    setTimeout(connect, socket.wait * (0.5 + Math.random()));
    socket.wait = Math.min(socket.wait * 2, 5000);
  };
}

function setLink(text, kind) {
  $("link").textContent = text;
  $("link").className = `pill ${kind}`;
}

function heard(event) {
  if (event.re !== undefined) {
    if (event.error) tell(new Error(event.error.detail || event.error.code));
    return;
  }
  if (socket.follow && event.s === socket.follow.name) followed(event);
}

// ---------------------------------------------------------------- streams

const rates = new Map();

async function streams() {
  const { streams: rows } = await askJson("/v1/streams?limit=200");
  const body = $("stream-rows");
  body.replaceChildren(...rows.map((row) => {
    const name = row.name ?? row.id;
    const before = rates.get(name);
    const at = performance.now();
    const rate = before && at > before.at ? ((row.pos - before.pos) * 1000) / (at - before.at) : 0;
    rates.set(name, { pos: row.pos, at });
    const open = () => choose(name);
    return el("tr", { tabindex: 0, onclick: open, onkeydown: (e) => e.key === "Enter" && open(), "aria-selected": socket.follow?.name === name },
      el("td", {}, name), el("td", {}, pill(row.status)), el("td", { class: "dim" }, short(row.worker)), el("td", { class: "n" }, number(Math.max(0, rate))));
  }));
  if (!rows.length) body.append(el("tr", {}, el("td", { colspan: 4, class: "empty" }, "No streams yet: append to one below, or `towpath demo`.")));
}

function choose(name) {
  if (socket.follow) say({ op: "unfollow", s: socket.follow.name });
  socket.follow = { name, token: "-1", draft: null, parts: 0 };
  $("stream").hidden = false;
  $("stream-name").textContent = name;
  $("messages").replaceChildren();
  $("events").textContent = "";
  followNow();
}

const followNow = () => say({ op: "follow", s: socket.follow.name, since: socket.follow.token, parts: true });

const textOf = (value) => {
  if (typeof value === "string") return value;
  for (const key of ["text", "delta", "content"]) if (typeof value?.[key] === "string") return value[key];
  return JSON.stringify(value);
};

function line(kind, label, text) {
  const list = $("messages");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
  const item = el("li", { class: kind }, label ? el("small", {}, label) : null, text);
  list.append(item);
  while (list.children.length > 500) list.firstChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
  return item;
}

function dropDraft() {
  socket.follow.draft?.remove();
  socket.follow.draft = null;
}

function followed(event) {
  const follow = socket.follow;
  if (event.o) follow.token = event.o;
  const log = $("events");
  log.textContent = (log.textContent + `${event.t} ${JSON.stringify(event.d ?? null)}\n`).slice(-20000);
  const d = event.d ?? {};
  switch (event.t) {
    case "status":
      $("stream-status").textContent = d.status;
      $("stream-status").className = `pill ${d.status}`;
      $("interrupt").hidden = !["running", "pending"].includes(d.status);
      $("stream-note").textContent = d.turn ? `turn ${d.turn} on ${short(d.worker)}` : "";
      break;
    case "message":
      if (d.turn) dropDraft();
      line(d.role ?? "", `${d.role ?? "bytes"} · ${d.id}`, textOf(d.content));
      break;
    case "part":
      if (!follow.draft) follow.draft = line("draft", `turn ${event.turn}`, "");
      follow.draft.append(textOf(d));
      $("messages").scrollTop = $("messages").scrollHeight;
      break;
    case "commit": dropDraft(); break;
    case "queue": if (d.queue?.length) line("note", null, `${d.queue.length} waiting`); break;
    case "error": if (d.error) line("note", null, `error: ${d.error}`); break;
    case "reset":
      if (["history", "epoch"].includes(d.reason)) $("messages").replaceChildren();
      dropDraft();
      line("note", null, `cleared: ${d.reason}`);
      break;
    case "degraded": case "restored": case "drain": case "closed":
      line("note", null, event.t + (d.what ? ` (${d.what})` : d.reason ? ` (${d.reason})` : ""));
      break;
  }
}

$("interrupt").onclick = () => act(() => send("POST", `/v1/streams/${pathOf(socket.follow.name)}/interrupt`, {}));
$("append").onsubmit = (event) => {
  event.preventDefault();
  act(async () => {
    await send("POST", `/v1/streams/${pathOf(socket.follow.name)}/messages`, { role: "user", content: $("append-text").value });
    $("append-text").value = "";
  });
};
$("new-stream").onsubmit = (event) => {
  event.preventDefault();
  const name = $("new-name").value.trim();
  act(async () => {
    await ask(`/v1/streams/${pathOf(name)}`, { method: "PUT" });
    $("new-name").value = "";
    choose(name);
    await streams();
  });
};

// ---------------------------------------------------------------- agents

// One live read brings all agents whose name begins so; a fetch, since EventSource can send no token.
const fleet = { cards: new Map(), reading: null };

async function agents() {
  const prefix = $("agent-prefix").value;
  const found = await askJson(`/v1/agents?prefix=${encodeURIComponent(prefix)}`);
  const list = (found.agents ?? []).slice(0, 120);
  const wanted = new Map(list.map((agent) => [agent.id ?? agent.agent, agent]));
  for (const [id, card] of fleet.cards) {
    if (wanted.has(id)) continue;
    card.remove();
    fleet.cards.delete(id);
  }
  for (const [id, agent] of wanted) {
    if (fleet.cards.has(id)) continue;
    const card = el("div", { class: "card" }, el("h2", {}, agent.name || short(id)), el("dl", {}));
    fleet.cards.set(id, card);
    $("agent-cards").append(card);
  }
  $("agent-cards").querySelector(".empty")?.remove();
  if (!list.length) $("agent-cards").append(el("p", { class: "empty" }, "No agent has reported."));
  if (fleet.reading?.prefix !== prefix) watchAgents(prefix);
}

async function watchAgents(prefix) {
  fleet.reading?.stop.abort();
  const reading = { prefix, stop: new AbortController() };
  fleet.reading = reading;
  try {
    const answer = await ask(`/v1/agents/watch?prefix=${encodeURIComponent(prefix)}`, { headers: { accept: "text/event-stream" }, signal: reading.stop.signal });
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let held = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const events = (held + value).split("\n\n");
      held = events.pop();
      for (const event of events) {
        const data = event.split("\n").filter((l) => l.startsWith("data:")).map((l) => l.slice(5)).join("\n");
        if (data) showAgent(JSON.parse(data));
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") tell(error);
  }
  // The next look at the list begins another.
  if (fleet.reading === reading) fleet.reading = null;
}

function showAgent({ agent, metadata }) {
  const card = fleet.cards.get(agent);
  if (!card || !Array.isArray(metadata)) return;
  card.querySelector("dl").replaceChildren(...metadata.slice(0, 24).flatMap((row) => [
    el("dt", {}, row.display_name || row.key),
    el("dd", { class: row.error ? "bad" : "", title: row.error || row.collected_at || "" }, row.error || row.value),
  ]));
}

// ---------------------------------------------------------------- connections

let older = null;
const filters = () => {
  const query = new URLSearchParams();
  for (const [key, value] of new FormData($("connection-filter"))) if (value) query.set(key, value);
  return query;
};

async function connections(after) {
  const query = filters();
  for (const format of ["csv", "ndjson"]) $(`export-${format}`).href = `/v1/connections/export?${new URLSearchParams([...query, ["format", format]])}`;
  query.set("limit", "50");
  if (after) query.set("after", after);
  const page = await askJson(`/v1/connections?${query}`);
  older = page.next;
  $("connection-more").hidden = !older;
  $("connection-count").textContent = `Connection log · ${page.count ?? page.connections.length}`;
  const rows = page.connections.map((c) => {
    const cell = (label, ...content) => el("td", { "data-label": label }, ...content);
    const lasted = c.disconnect_time ? seconds((Date.parse(c.disconnect_time) - Date.parse(c.connect_time)) / 1000) : pill("ongoing");
    return el("tr", {}, cell("connected", c.connect_time?.replace("T", " ").slice(0, 19) ?? ""), cell("type", c.type),
      cell("agent", c.agent_name || c.slug_or_port || ""), cell("from", c.ip ?? ""), cell("lasted", lasted),
      cell("ended", [c.disconnect_reason, c.code].filter((x) => x !== null && x !== undefined && x !== "").join(" · ")));
  });
  if (after) $("connection-rows").append(...rows);
  else $("connection-rows").replaceChildren(...(rows.length ? rows : [el("tr", {}, el("td", { colspan: 6, class: "empty" }, "No connection matches."))]));
}
$("connection-filter").onsubmit = (event) => { event.preventDefault(); act(() => connections()); };
$("connection-more").onclick = () => act(() => connections(older));

// ---------------------------------------------------------------- pipes

const timelines = new Map();

async function pipes() {
  const { pipes: list } = await askJson("/v1/pipes");
  const cards = list.map((pipe) => {
    const state = pipe.state ?? (pipe.attached ? "attached" : "detached");
    const line = timelines.get(pipe.id) ?? [];
    line.push(state);
    if (line.length > 90) line.shift();
    timelines.set(pipe.id, line);
    const width = 100 / 90;
    const drawn = svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": "attached or not, over the last minutes" },
      ...line.map((s, i) => svg("rect", { class: s, x: i * width, y: s === "attached" ? 6 : 1, width, height: s === "attached" ? 3 : 8 })));
    const facts = Object.entries(pipe).filter(([key, value]) => !["id", "state"].includes(key) && value !== null && typeof value !== "object");
    return el("div", { class: "card" }, el("h2", {}, pipe.target ?? short(pipe.id)), pill(state), " ",
      el("button", { class: "danger", onclick: () => act(() => send("POST", `/v1/pipes/${encodeURIComponent(pipe.id)}/cut`, {})) }, "cut"), drawn,
      el("dl", {}, ...facts.flatMap(([key, value]) => [el("dt", {}, key.replace(/_/g, " ")), el("dd", {}, typeof value === "number" ? number(value) : String(value))])));
  });
  $("pipe-cards").replaceChildren(...(cards.length ? cards : [el("p", { class: "empty" }, "No pipe is open.")]));
}

// ---------------------------------------------------------------- replicas

async function replicas() {
  const { replicas: list } = await askJson("/v1/replicas");
  const cell = (label, ...content) => el("td", { "data-label": label }, ...content);
  $("replica-rows").replaceChildren(...list.map((r) => el("tr", {}, cell("host", r.hostname), cell("id", short(r.id)), cell("version", r.version ?? ""),
    cell("relay", r.relay_url ?? ""), cell("seen", ago(r.updated_at)), cell("trouble", r.error ?? ""))));
}

// ---------------------------------------------------------------- engine

const history = new Map();
const PLOTS = [/deliver/, /^towpath_links/, /wakes?_total|flush(es)?_total/, /memory|resident/];

async function engine() {
  const text = await (await ask("/metrics", { headers: { accept: "text/plain" } })).text();
  const at = performance.now();
  const figures = [];
  for (const row of text.split("\n")) {
    if (!row || row.startsWith("#") || row.includes("_bucket{")) continue;
    const cut = row.lastIndexOf(" ");
    const name = row.slice(0, cut), value = Number(row.slice(cut + 1));
    const points = history.get(name) ?? [];
    const last = points.at(-1);
    const rate = last ? ((value - last.value) * 1000) / (at - last.at) : 0;
    points.push({ at, value, rate });
    if (points.length > 120) points.shift();
    history.set(name, points);
    figures.push({ name, value, rate, counts: /_(total|count|sum)(\{|$)/.test(name) });
  }
  const wanted = $("figure-filter").value.toLowerCase();
  $("figure-rows").replaceChildren(...figures.filter((f) => f.name.includes(wanted)).map((f) =>
    el("tr", {}, el("td", {}, f.name), el("td", { class: "n" }, number(f.value)), el("td", { class: "n" }, f.counts ? number(Math.max(0, f.rate)) : ""))));
  const plotted = PLOTS.flatMap((wanted) => figures.filter((f) => wanted.test(f.name)).slice(0, 2));
  $("plots").replaceChildren(...plotted.map((f) => {
    const values = history.get(f.name).map((p) => (f.counts ? Math.max(0, p.rate) : p.value)).slice(f.counts ? 1 : 0);
    const top = Math.max(1e-9, ...values);
    const points = values.map((v, i) => `${(i * 100) / Math.max(1, values.length - 1)},${30 - (v / top) * 28}`).join(" ");
    return el("div", { class: "card" }, el("h2", {}, `${f.name.replace(/^towpath_/, "")}${f.counts ? " per second" : ""}`),
      svg("svg", { viewBox: "0 0 100 30", preserveAspectRatio: "none", role: "img", "aria-label": f.name }, svg("polyline", { points })),
      el("dl", {}, el("dt", {}, "now"), el("dd", {}, number(values.at(-1) ?? 0)), el("dt", {}, "peak"), el("dd", {}, number(top < 1e-6 ? 0 : top))));
  }));
  const spool = await askJson("/v1/spool").catch(() => null);
  $("spool").replaceChildren(...(spool ? [el("div", { class: "card" }, el("h2", {}, "spool"),
    el("dl", {}, ...Object.entries(spool).flatMap(([key, value]) => [el("dt", {}, key.replace(/_/g, " ")), el("dd", { class: key === "lost" && value > 0 ? "bad" : "" }, String(value ?? "–"))])))] : []));
}

// ---------------------------------------------------------------- what is shown

const parts = { streams, agents, connections: () => connections(), pipes, replicas, engine };
let shown = "streams";

function show(tab) {
  shown = parts[tab] ? tab : "streams";
  if (shown !== "agents") fleet.reading?.stop.abort();
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== shown;
  for (const button of document.querySelectorAll("nav button")) {
    if (button.dataset.tab === shown) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  refresh();
}

async function refresh() {
  await act(parts[shown]);
}

async function health() {
  try {
    const { ready, reasons } = await askJson("/readyz");
    $("health").textContent = ready ? "ready" : `not ready: ${reasons.join("; ")}`;
    $("health").className = `pill ${ready ? "good" : "bad"}`;
  } catch {
    $("health").textContent = "unreachable";
    $("health").className = "pill bad";
  }
}

for (const button of document.querySelectorAll("nav button")) {
  button.onclick = () => { location.hash = button.dataset.tab; };
}
addEventListener("hashchange", () => show(location.hash.slice(1)));
$("agent-prefix").oninput = () => act(agents);
$("figure-filter").oninput = () => act(engine);
$("auth").onsubmit = (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem("token", token);
  $("token").value = "";
  const old = socket.ws;
  socket.ws = null;
  old?.close();
  connect();
  refresh();
};

show(location.hash.slice(1));
connect();
health();
setInterval(() => { if (!document.hidden && shown !== "connections") refresh(); }, 2000);
setInterval(() => { if (!document.hidden) health(); }, 5000);
