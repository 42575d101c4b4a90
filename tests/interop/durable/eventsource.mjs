// The `eventsource` package follows STREAM at TOWPATH_URL, and says how far it is. Whoever started it
// restarts the daemon and stops this program for a while.
import { EventSource } from "eventsource";
import { url } from "./api.mjs";

const got = [];
// Between two connections the package keeps no program alive.
setInterval(() => {}, 60_000);
const source = new EventSource(`${url}/v1/streams/${process.env.STREAM}/events`);
source.addEventListener("live", () => console.log("live"));
source.addEventListener("reset", (event) => console.log(`reset ${event.data}`));
source.addEventListener("message", (event) => {
  const { n, last } = JSON.parse(event.data).d.content;
  got.push(n);
  if (n % 100 === 0) console.log(`got ${n}`);
  if (!last) return;
  source.close();
  const wrong = got.findIndex((n, at) => n !== at + 1);
  console.log(wrong < 0 ? `whole ${got.length}` : `broken at ${wrong}: ${got.slice(wrong, wrong + 5)}`);
  process.exit(0);
});
