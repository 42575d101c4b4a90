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

// What an action met stays until the next action; what a look met goes with the next good look.
const problems = { action: null, look: null };

function tell(from, error) {
  problems[from] = error;
  const worst = problems.action ?? problems.look;
  $("problem").hidden = !worst;
  if (!worst) return;
  const advice = { 401: " Give a token above.", 403: " This token may not do that: it needs the role admin." }[worst.status] ?? "";
  $("problem-text").textContent = worst.message + advice;
}
const attempt = async (from, what) => {
  try {
    await what();
    tell(from, null);
  } catch (error) {
    // A failed fetch says nothing of use: the daemon is away, and the pills above say so.
    tell(from, error instanceof TypeError && from === "look" ? null : error);
  }
};
const act = (what) => attempt("action", what);
const look = (what) => attempt("look", what);

// What these credentials allow. Until the daemon has said it, everything is offered, and refused with a reason.
const ALL = ["admin", "producer", "follower", "agent", "pipe"];
let roles = ALL;
const may = (...any) => roles.includes("admin") || any.some((role) => roles.includes(role));

async function knowMyself() {
  try {
    const me = await askJson("/v1/whoami");
    roles = me.roles;
    $("who").textContent = token ? `${me.name}: ${me.roles.join(", ") || "no role"}` : "";
  } catch (error) {
    // Who is not known yet is told so by the parts that need it.
    if (![401, 403].includes(error.status)) throw error;
    roles = [];
    $("who").textContent = "";
  }
  for (const part of document.querySelectorAll("[data-needs]")) part.hidden = !may(part.dataset.needs);
}

// ---------------------------------------------------------------- one socket

const socket = { ws: null, wait: 250, next: 1, follow: null, again: null };

// Answers the number that the daemon's answer will carry.
function say(message) {
  const id = socket.next++;
  if (socket.ws?.readyState === WebSocket.OPEN) socket.ws.send(JSON.stringify({ id, ...message }));
  return id;
}

function connect() {
  clearTimeout(socket.again);
  const protocols = ["towpath.v1"];
  // A browser cannot set headers on a WebSocket; the token travels as a subprotocol that is never answered.
  if (token) protocols.push(`towpath.bearer.${token}`);
  const ws = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/v1/ws`, protocols);
  socket.ws = ws;
  ws.onopen = () => {
    socket.wait = 250;
    setLink("live", "good");
    if (socket.follow) followNow();
    fleet.watched.clear();
  };
  ws.onmessage = (frame) => heard(JSON.parse(frame.data));
  ws.onclose = () => {
    if (socket.ws !== ws) return;
    setLink("link lost, coming back", "busy");
    socket.again = setTimeout(connect, socket.wait * (0.5 + Math.random()));
    socket.wait = Math.min(socket.wait * 2, 5000);
  };
}

function setLink(text, kind) {
  $("link").textContent = text;
  $("link").className = `pill ${kind}`;
}

function heard(event) {
  if (event.re !== undefined) {
    if (event.error && !fleet.refused(event)) tell("action", new Error(event.error.detail || event.error.code));
    return;
  }
  if (event.t === "metadata" && event.agent) showAgent({ agent: event.agent, metadata: event.d?.metadata ?? event.d });
  else if (socket.follow && event.s === socket.follow.name) followed(event);
}

// ---------------------------------------------------------------- streams

const rates = new Map();
const LIVE = "running,interrupting,pending";

// What lives comes first; after it, what there is besides.
async function streams() {
  const wanted = $("stream-status-filter").value;
  const contains = $("stream-filter").value.toLowerCase();
  const ask = (status, limit) => askJson(`/v1/streams?limit=${limit}${status ? `&status=${status}` : ""}`);
  const pages = await Promise.all(wanted ? [ask(wanted, 200)] : [ask(LIVE, 200), ask("failed,idle,done", 100)]);
  const rows = pages.flatMap((page) => page.streams).filter((row) => (row.name ?? row.id).toLowerCase().includes(contains));
  const living = await livingStreams();
  const at = performance.now();
  $("stream-rows").replaceChildren(...rows.map((row) => {
    const name = row.name ?? row.id;
    // Durable changes, and the parts of the turn that runs.
    const here = living?.get(row.id);
    const stood = { at, pos: row.pos, turn: here?.turn, part: here?.parts ?? 0 };
    const before = rates.get(name);
    const parts = before && before.turn === stood.turn ? stood.part - before.part : stood.part;
    const rate = before && at > before.at ? ((row.pos - before.pos + Math.max(0, parts)) * 1000) / (at - before.at) : 0;
    rates.set(name, stood);
    const open = () => choose(name);
    return el("tr", { tabindex: 0, onclick: open, onkeydown: (e) => e.key === "Enter" && open(), "aria-selected": socket.follow?.name === name },
      el("td", {}, name), el("td", {}, pill(row.status)), el("td", { class: "dim", title: row.worker ?? "" }, hosts.get(row.worker) ?? short(row.worker)),
      el("td", { class: "n" }, living ? String(here?.followers ?? 0) : "–"), el("td", { class: "n" }, number(Math.max(0, rate))));
  }));
  const more = pages.some((page) => page.next);
  $("stream-count").textContent = `Live streams · ${rows.length}${more ? " of more: filter by status, or `towpath stream ls`" : ""}`;
  if (!rows.length) $("stream-rows").append(el("tr", {}, el("td", { colspan: 5, class: "empty" }, contains || wanted ? "No stream matches." : "No streams yet: follow one below, or start `towpath demo`.")));
}

// Only an admin may see who is followed; for others the column stays empty.
async function livingStreams() {
  if (!may()) return null;
  try {
    const { streams: found } = await askJson("/v1/admin/live");
    return new Map(found.map((row) => [row.stream, row]));
  } catch (error) {
    if (error.status === 403) return null;
    throw error;
  }
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
      $("interrupt").hidden = !(may("producer", "follower") && ["running", "pending"].includes(d.status));
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
    if (may("producer")) await ask(`/v1/streams/${pathOf(name)}`, { method: "PUT" }).catch((error) => {
      // It is there, made with labels or a type of its own: all the better.
      if (error.status !== 409) throw error;
    });
    $("new-name").value = "";
    choose(name);
    await streams();
  });
};

// ---------------------------------------------------------------- agents

// Agents are watched over the socket. A daemon that does not know how yet sends all of a prefix in one
// live read instead; a fetch, since EventSource can send no token.
const fleet = {
  cards: new Map(), watched: new Map(), reading: null, overSocket: true,
  refused(event) {
    if (!this.watched.size || !["bad_request", "unknown_op"].includes(event.error.code)) return false;
    const [mine] = [...this.watched].filter(([, ask]) => ask === event.re);
    if (!mine) return false;
    this.overSocket = false;
    return true;
  },
};

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
    const card = el("div", { class: "card" }, el("h2", { title: id }, agent.name || short(id)), el("dl", {}));
    fleet.cards.set(id, card);
    $("agent-cards").append(card);
  }
  $("agent-cards").querySelector(".empty")?.remove();
  if (!list.length) $("agent-cards").append(el("p", { class: "empty" }, prefix ? "No agent's name begins so." : "No agent has reported: try `towpath metadata set`."));
  if (fleet.overSocket) {
    for (const id of wanted.keys()) if (!fleet.watched.has(id)) fleet.watched.set(id, say({ op: "watch", agent: id }));
    for (const id of [...fleet.watched.keys()]) {
      if (wanted.has(id)) continue;
      say({ op: "unwatch", agent: id });
      fleet.watched.delete(id);
    }
  } else if (fleet.reading?.prefix !== prefix) watchAgents(prefix);
}

function leaveAgents() {
  fleet.reading?.stop.abort();
  for (const id of fleet.watched.keys()) if (fleet.overSocket) say({ op: "unwatch", agent: id });
  fleet.watched.clear();
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
    if (error.status) tell("look", error);
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
  for (const [key, value] of new FormData($("connection-filter"))) {
    if (!value) continue;
    if (key === "label") {
      const [name, ...rest] = value.split("=");
      query.set(`label.${name.trim()}`, rest.join("=").trim());
    } else query.set(key, key.startsWith("connected_") ? new Date(value).toISOString() : value.trim());
  }
  return query;
};

async function connections(after) {
  const query = filters();
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
      cell("agent", c.agent_name || c.slug_or_port || ""), cell("user", short(c.user_id)), cell("from", c.ip ?? ""), cell("lasted", lasted),
      cell("ended", [c.disconnect_reason, c.code].filter((x) => x !== null && x !== undefined && x !== "").join(" · ")));
  });
  if (after) $("connection-rows").append(...rows);
  else $("connection-rows").replaceChildren(...(rows.length ? rows : [el("tr", {}, el("td", { colspan: 7, class: "empty" }, query.size > 1 ? "No connection matches." : "Nobody has connected yet."))]));
}
$("connection-filter").onsubmit = (event) => { event.preventDefault(); act(() => connections()); };
// A download goes past the page, so it cannot carry the token; a ticket is good for this one request.
for (const format of ["csv", "ndjson"]) {
  $(`export-${format}`).onclick = () => act(async () => {
    const query = filters();
    query.set("format", format);
    if (token) query.set("ticket", (await send("POST", "/v1/ticket")).ticket);
    const link = el("a", { href: `/v1/connections/export?${query}`, download: `connections.${format}` });
    document.body.append(link);
    link.click();
    link.remove();
  });
}
$("connection-more").onclick = () => act(() => connections(older));

// ---------------------------------------------------------------- pipes

// Looked at all the time, not only while it is shown: a loss that nobody watched is part of the picture.
const timelines = new Map();
const MOMENTS = 120;

function remember(list) {
  for (const pipe of list) {
    const past = timelines.get(pipe.id) ?? { moments: [], events: [], last: null };
    timelines.set(pipe.id, past);
    const time = new Date().toLocaleTimeString();
    const resumed = past.last ? pipe.resumes - past.last.resumes : 0;
    if (past.last?.state === "attached" && pipe.state === "detached") past.events.unshift(`${time} link lost`);
    if (resumed > 0) past.events.unshift(`${time} recovered${resumed > 1 ? ` ${resumed} times` : ""}, ${bytes(pipe.replayed_bytes - past.last.replayed_bytes)} sent again`);
    past.events.length = Math.min(past.events.length, 5);
    // A loss shorter than the time between two looks shows by its recovery.
    past.moments.push(pipe.state === "detached" ? "detached" : resumed > 0 ? "resumed" : "attached");
    if (past.moments.length > MOMENTS) past.moments.shift();
    past.last = pipe;
  }
  const here = new Set(list.map((pipe) => pipe.id));
  for (const id of timelines.keys()) if (!here.has(id)) timelines.delete(id);
}

async function watchPipes() {
  const { pipes: list } = await askJson("/v1/pipes");
  remember(list);
  return list;
}

const PIPE_FACTS = [
  ["since", (p) => ago(p.created_at)], ["peer", (p) => p.peer], ["who", (p) => p.principal],
  ["to target", (p) => bytes(p.bytes_to_target)], ["from target", (p) => bytes(p.bytes_from_target)],
  ["waiting here", (p) => bytes(p.buffered_bytes)], ["recovered", (p) => `${p.resumes} times`],
  ["sent again", (p) => bytes(p.replayed_bytes)], ["doubled", (p) => `${bytes(p.duplicate_bytes)} dropped`],
  ["round trip", (p) => (p.round_trip_us === null ? null : `${(p.round_trip_us / 1000).toFixed(2)} ms`)],
  ["without a link for", (p) => (p.detached_ms === null ? null : seconds(p.detached_ms / 1000))],
];

async function pipes() {
  const list = await watchPipes();
  const cards = list.map((pipe) => {
    const { moments, events } = timelines.get(pipe.id);
    const width = 100 / MOMENTS;
    const heights = { attached: 3, resumed: 6, detached: 9 };
    const drawn = svg("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": "attached, recovered or without a link, over the last minutes" },
      ...moments.map((s, i) => svg("rect", { class: s, x: (MOMENTS - moments.length + i) * width, y: 10 - heights[s], width, height: heights[s] })));
    const facts = PIPE_FACTS.map(([label, read]) => [label, read(pipe)]).filter(([, value]) => value !== null && value !== undefined && value !== "");
    return el("div", { class: "card" }, el("h2", { title: pipe.id }, pipe.target || short(pipe.id)), pill(pipe.state), " ",
      el("button", { class: "danger", title: "cut its link, and watch it recover", onclick: () => act(() => send("POST", `/v1/pipes/${encodeURIComponent(pipe.id)}/cut`, {})) }, "cut"), drawn,
      el("dl", {}, ...facts.flatMap(([label, value]) => [el("dt", {}, label), el("dd", {}, value)])),
      el("ul", { class: "dim" }, ...events.map((event) => el("li", {}, event))));
  });
  $("pipe-cards").replaceChildren(...(cards.length ? cards : [el("p", { class: "empty" }, "No pipe is open: try `towpath connect`, or `towpath demo`.")]));
}

// ---------------------------------------------------------------- replicas

const hosts = new Map();

async function knowHosts() {
  const { replicas: list } = await askJson("/v1/replicas");
  for (const replica of list) hosts.set(replica.id, replica.hostname);
  return list;
}

async function replicas() {
  const list = await knowHosts();
  const cell = (label, ...content) => el("td", { "data-label": label }, ...content);
  $("replica-rows").replaceChildren(...list.map((r) => el("tr", {}, cell("host", r.hostname), cell("id", short(r.id)), cell("version", r.version ?? ""),
    cell("relay", r.relay_url ?? ""), cell("seen", ago(r.updated_at)), cell("trouble", r.error ?? ""))));
}

// ---------------------------------------------------------------- engine

const history = new Map();
const POINTS = 120;

// Every figure by its name, members of one added up; buckets of histograms apart.
function parseFigures(text) {
  const sums = new Map(), rows = [], buckets = new Map();
  for (const row of text.split("\n")) {
    if (!row || row.startsWith("#")) continue;
    const cut = row.lastIndexOf(" ");
    const name = row.slice(0, cut), value = Number(row.slice(cut + 1));
    const bare = name.split("{")[0];
    const bound = name.match(/le="([^"]*)"/);
    if (bound) {
      const of = bare.replace(/_bucket$/, "");
      if (!buckets.has(of)) buckets.set(of, new Map());
      const le = bound[1] === "+Inf" ? Infinity : Number(bound[1]);
      buckets.get(of).set(le, (buckets.get(of).get(le) ?? 0) + value);
      continue;
    }
    sums.set(bare, (sums.get(bare) ?? 0) + value);
    rows.push({ name, value, counts: /_(total|count|sum)(\{|$)/.test(name) });
  }
  return { sums, rows, buckets };
}

// The time under which that share of what happened since the look before stayed; null if nothing did.
function quantile(now, before, share) {
  if (!now || !before) return null;
  const grown = [...now].map(([le, count]) => [le, count - (before.get(le) ?? 0)]).sort((a, b) => a[0] - b[0]);
  const all = grown.at(-1)?.[1] ?? 0;
  if (all <= 0) return null;
  const [le] = grown.find(([, count]) => count >= all * share);
  return Number.isFinite(le) ? le : grown.at(-2)?.[0] ?? null;
}

function remembered(key, value) {
  const points = history.get(key) ?? [];
  points.push(value);
  if (points.length > POINTS) points.shift();
  history.set(key, points);
  return points;
}

const millis = (s) => `${(s * 1000).toFixed(s < 0.01 ? 2 : 1)} ms`;
const bytes = (n) => (n < 1e3 ? `${n} B` : n < 1e6 ? `${(n / 1e3).toFixed(1)} kB` : n < 1e9 ? `${(n / 1e6).toFixed(1)} MB` : `${(n / 1e9).toFixed(1)} GB`);
const mebibytes = (bytes) => `${(bytes / 1048576).toFixed(1)} MiB`;
const perSecond = (n) => `${n < 10 ? +n.toFixed(2) : number(n)} /s`;

const PLOTS = [
  { label: "deliveries", read: (f) => f.rate("towpath_deliveries_total"), show: perSecond },
  { label: "bytes out", read: (f) => f.rate("towpath_bytes_out_total"), show: (n) => `${bytes(Math.round(n))}/s` },
  { label: "links", read: (f) => f.sum("towpath_links"), show: number },
  { label: "latency: this page and back", read: (f) => f.trip / 1000, show: millis },
  { label: "latency: metadata flush, p99", read: (f) => f.p99("towpath_metadata_flush_seconds"), show: millis },
  { label: "latency: connection flush, p99", read: (f) => f.p99("towpath_connections_flush_seconds"), show: millis },
  { label: "memory", read: (f) => f.sum("towpath_resident_bytes"), show: mebibytes },
  { label: "metadata written", read: (f) => f.rate("towpath_metadata_flushed_total"), show: perSecond },
];

const ENGINES = [
  { label: "metadata batcher", facts: [
    ["waiting", "towpath_metadata_pending"], ["taken in", "towpath_metadata_accepted_total", true], ["coalesced", "towpath_metadata_coalesced_total", true],
    ["written", "towpath_metadata_flushed_total", true], ["flushes", "towpath_metadata_flushes_total", true], ["notices", "towpath_metadata_notices_total", true],
    ["writes failed", "towpath_metadata_write_failures_total", false, "bad"], ["watchers", "towpath_metadata_watchers"]] },
  { label: "connection log batcher", facts: [
    ["waiting", "towpath_connections_pending"], ["taken in", "towpath_connections_accepted_total", true], ["merged", "towpath_connections_merged_total", true],
    ["written", "towpath_connections_stored_total", true], ["flushes", "towpath_connections_flushes_total", true], ["refused", "towpath_connections_refused_total", false, "bad"]] },
  { label: "retry", facts: [
    ["tried again", "towpath_connections_retries_total"], ["writes failed", "towpath_connections_write_failures_total", false, "bad"],
    ["batches halved", "towpath_connections_splits_total"], ["dead letters", "towpath_connections_dead_lettered_total", false, "bad"]] },
];

let seenBefore = null;

// Where nothing happened, what was last is still what is known.
const known = new Map();
const lastOf = (name, value) => {
  if (value !== null) known.set(name, value);
  return known.get(name) ?? 0;
};

async function engine() {
  const asked = performance.now();
  const text = await (await ask("/metrics", { headers: { accept: "text/plain" } })).text();
  const at = performance.now();
  const now = { at, ...parseFigures(text) };
  const before = seenBefore;
  seenBefore = now;
  const past = before ? new Map(before.rows.map((row) => [row.name, row.value])) : new Map();
  const span = before ? (at - before.at) / 1000 : 1;
  const figures = {
    trip: at - asked,
    sum: (name) => now.sums.get(name) ?? 0,
    rate: (name) => (before ? Math.max(0, ((now.sums.get(name) ?? 0) - (before.sums.get(name) ?? 0)) / span) : 0),
    p99: (name) => lastOf(name, quantile(now.buckets.get(name), before?.buckets.get(name), 0.99)),
  };
  const dl = (rows) => el("dl", {}, ...rows.flatMap(([label, value, kind]) => [el("dt", {}, label), el("dd", { class: kind ?? "" }, value)]));
  $("engines").replaceChildren(...ENGINES.map(({ label, facts }) => el("div", { class: "card" }, el("h2", {}, label), dl(facts.map(([what, name, rated, kind]) => {
    const value = figures.sum(name);
    return [what, rated ? `${number(value)} · ${perSecond(figures.rate(name))}` : number(value), value > 0 ? kind : ""];
  })))), await spoolCard(dl));
  $("plots").replaceChildren(...PLOTS.map(({ label, read, show }) => {
    const values = remembered(label, read(figures));
    const top = Math.max(1e-9, ...values);
    const points = values.map((v, i) => `${((POINTS - values.length + i) * 100) / (POINTS - 1)},${30 - (v / top) * 28}`).join(" ");
    return el("div", { class: "card" }, el("h2", {}, label),
      svg("svg", { viewBox: "0 0 100 30", preserveAspectRatio: "none", role: "img", "aria-label": label }, svg("polyline", { points })),
      dl([["now", show(values.at(-1))], ["peak", show(top < 1e-6 ? 0 : top)]]));
  }));
  const wanted = $("figure-filter").value.toLowerCase();
  $("figure-rows").replaceChildren(...now.rows.filter((f) => f.name.includes(wanted)).map((f) =>
    el("tr", {}, el("td", {}, f.name), el("td", { class: "n" }, number(f.value)), el("td", { class: "n" }, f.counts && past.has(f.name) ? number(Math.max(0, (f.value - past.get(f.name)) / span)) : ""))));
}

// Only an admin may see the spool.
async function spoolCard(dl) {
  const spool = !may() ? { error: "needs the role admin" } : await askJson("/v1/spool").catch((error) => ({ error: error.message }));
  const card = (rows) => el("div", { class: "card" }, el("h2", {}, "spool"), dl(rows));
  if (spool.error) return card([["not shown", spool.error]]);
  return card([["records", number(spool.records)], ["bytes", number(spool.bytes)], ["oldest", spool.oldest_at ? ago(spool.oldest_at) : "–"],
    ["dead letters", number(spool.dead_letters), spool.dead_letters > 0 ? "bad" : ""], ["lost to damage", number(spool.lost), spool.lost > 0 ? "bad" : ""]]);
}

// ---------------------------------------------------------------- what is shown

const parts = { streams, agents, connections: () => connections(), pipes, replicas, engine };
let shown = "streams";

function show(tab) {
  shown = parts[tab] ? tab : "streams";
  if (shown !== "agents") leaveAgents();
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== shown;
  for (const button of document.querySelectorAll("nav button")) {
    if (button.dataset.tab === shown) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  refresh();
}

// One look at a time: a slow daemon is not asked again before it has answered.
let looking = false;
async function refresh() {
  if (looking) return;
  looking = true;
  await look(parts[shown]);
  looking = false;
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
$("agent-prefix").oninput = () => look(agents);
$("stream-filter").oninput = () => look(streams);
$("stream-status-filter").onchange = () => look(streams);
$("problem-gone").onclick = () => { tell("action", null); tell("look", null); };
$("auth").onsubmit = (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  tell("action", null);
  sessionStorage.setItem("token", token);
  $("token").value = "";
  const old = socket.ws;
  socket.ws = null;
  old?.close();
  connect();
  look(knowMyself);
  refresh();
};

show(location.hash.slice(1));
connect();
health();
setInterval(() => {
  if (document.hidden) return;
  // The log stays where its reader is, unless the newest page is what is read.
  if (shown !== "connections" || (scrollY < 200 && $("connection-rows").children.length <= 50)) refresh();
  if (shown !== "pipes" && may("pipe")) watchPipes().catch(() => {});
}, 2000);
setInterval(() => { if (!document.hidden) health(); }, 5000);
look(knowMyself).then(() => may() && look(knowHosts));
