// A still of the dashboard of the daemon at TOWPATH_URL (`towpath demo`) as a PNG: the stream `demo/chat-1`
// while a turn runs. `make still` makes docs/dashboard.png with it.
import { chromium } from "playwright-core";

const [file] = process.argv.slice(2);
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const page = await browser.newPage({ viewport: { width: 1100, height: 620 }, colorScheme: "dark" });
// The demo may be about to start.
for (let tries = 0; ; tries++) {
  const opened = await page.goto(`${process.env.TOWPATH_URL ?? "http://127.0.0.1:7700"}/`).catch((error) => error);
  if (!(opened instanceof Error)) break;
  if (tries === 60) throw opened;
  await new Promise((resolve) => setTimeout(resolve, 500));
}
await page.click("#stream-rows td >> text=demo/chat-1");
await page.waitForSelector("#messages li.assistant", { timeout: 120000 });
await page.waitForFunction(() => document.querySelector("#messages li.draft")?.textContent.length > 60, null, { timeout: 120000 });
// The list is asked for every two seconds: the still shows the stream as it runs.
await page.waitForFunction(() => {
  const row = document.querySelector("#stream-rows tr[aria-selected=true]");
  return row?.textContent.includes("running") && Number(row.lastChild.textContent) > 0 && document.querySelector("#messages li.draft");
}, null, { timeout: 120000 });
await page.screenshot({ path: file });
await browser.close();
