// What the scripts here share: the daemon's HTTP API, and waiting.
export const url = process.env.TOWPATH_URL;
if (!url) throw new Error("TOWPATH_URL says where the daemon is");

export const unique = () => `${Date.now()}-${Math.random().toString(36).slice(2)}`;

export async function api(method, path, body, headers = {}) {
  const response = await fetch(`${url}${path}`, {
    method,
    headers: { "content-type": "application/json", ...headers },
    body: body === undefined ? undefined : typeof body === "string" ? body : JSON.stringify(body),
  });
  const text = await response.text();
  if (!response.ok) throw new Error(`${method} ${path}: ${response.status} ${text}`);
  return text ? JSON.parse(text) : undefined;
}

// Waits until something holds: generously, the machine may be busy.
export async function until(what, holds, patience = 60_000) {
  const deadline = Date.now() + patience;
  for (;;) {
    const value = await holds();
    if (value) return value;
    if (Date.now() > deadline) throw new Error(`${what}: not in ${patience} ms`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

// Begins a turn; gives the means to feed and to end it.
export async function begin(stream) {
  const { turn, lease } = await api("POST", `/v1/streams/${stream}/turns`, {});
  const at = `/v1/streams/${stream}/turns/${turn}`;
  const headers = { "towpath-lease": lease };
  const lines = (parts) => parts.map((part) => JSON.stringify(part)).join("\n");
  return {
    turn,
    parts: (...parts) => api("POST", `${at}/parts`, lines(parts), { ...headers, "content-type": "application/x-ndjson" }),
    commit: (content) => api("POST", `${at}/commit`, { role: "assistant", content }, headers),
    finish: (status = { status: "done" }) => api("POST", `${at}/finish`, status, headers),
    abort: () => api("POST", `${at}/abort`, {}, headers),
    alive: () => api("POST", `${at}/keepalive`, undefined, headers),
  };
}

// Runs named steps one after the other; exits with what went wrong.
export async function run(steps) {
  for (const [name, step] of Object.entries(steps)) {
    try {
      await step();
      console.log(`ok: ${name}`);
    } catch (error) {
      console.error(`FAILED: ${name}\n${error.stack}`);
      process.exit(1);
    }
  }
  process.exit(0);
}
