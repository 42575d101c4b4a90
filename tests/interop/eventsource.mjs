// A browser's own EventSource follows STREAM at TOWPATH_URL, and says how far it is. A line on standard input
// makes the page read nothing until the daemon has cut it off.
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const page = await browser.newPage();
page.on("console", async (message) => {
  const text = message.text();
  console.log(text);
  if (/^(whole|broken)/.test(text)) {
    await browser.close();
    process.exit(0);
  }
});
await page.goto(`${process.env.TOWPATH_URL}/healthz`);
await page.evaluate((stream) => {
  const got = [];
  const source = new EventSource(`/v1/streams/${stream}/events`);
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
  });
}, process.env.STREAM);
for await (const _ of createInterface({ input: process.stdin })) {
  await page.evaluate(() => {
    // A page that is busy takes nothing from its connections, and asks in the only way that is left to it.
    const cut = () => {
      const request = new XMLHttpRequest();
      request.open("GET", "/metrics", false);
      request.send();
      return !/^towpath_links_cut_slow_total 0$/m.test(request.responseText);
    };
    const deadline = Date.now() + 120_000;
    while (!cut() && Date.now() < deadline);
  });
}
