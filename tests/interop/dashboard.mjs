// Clicks through the dashboard of the daemon at TOWPATH_URL, in light and dark, wide and at a phone's
// width. Exits with what is wrong.
import { chromium } from "playwright-core";

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const wrong = [];
const views = [
  { name: "light", colorScheme: "light", width: 1280 },
  { name: "dark", colorScheme: "dark", width: 1280 },
  { name: "phone", colorScheme: "dark", width: 390 },
];
for (const { name, colorScheme, width } of views) {
  const page = await browser.newPage({ viewport: { width, height: 860 }, colorScheme });
  page.setDefaultTimeout(15000);
  page.on("console", (m) => m.type() === "error" && wrong.push(`${name}: ${m.text()} ${m.location().url}`));
  page.on("pageerror", (error) => wrong.push(`${name}: ${error.message}`));
  page.on("request", (request) => {
    const { protocol, origin } = new URL(request.url());
    if (protocol !== "data:" && origin !== new URL(process.env.TOWPATH_URL).origin) wrong.push(`${name}: asked ${request.url()}`);
  });
  const step = async (what, act) => {
    try {
      await act();
    } catch (error) {
      wrong.push(`${name}: ${what}: ${error.message.split("\n")[0]}`);
    }
  };
  await step("opens", () => page.goto(`${process.env.TOWPATH_URL}/`));
  await step("is ready and live", async () => {
    await page.waitForSelector("#health.good");
    await page.waitForSelector("#link.good");
  });
  await step("follows a stream", async () => {
    await page.click("#stream-rows tr[tabindex]");
    await page.waitForSelector("#messages li >> text=hello from a test");
  });
  await step("appends and sees it come back", async () => {
    await page.fill("#append-text", `said in ${name}`);
    await page.click("#append button");
    await page.waitForSelector(`#messages li >> text=said in ${name}`);
  });
  await step("shows an agent's value", async () => {
    await page.click("nav button[data-tab=agents]");
    await page.waitForSelector("#agent-cards dd >> text=12%");
  });
  for (const tab of ["connections", "replicas", "engine"]) {
    await step(tab, async () => {
      await page.click(`nav button[data-tab=${tab}]`);
      await page.waitForSelector(`#${tab}:not([hidden]) tbody tr`);
    });
  }
  await step("fits", async () => {
    const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    if (over > 0) throw new Error(`${over} pixels too wide`);
  });
  const told = await page.textContent("#problem");
  if (told) wrong.push(`${name}: the page says: ${told}`);
  await page.close();
}
await browser.close();
if (wrong.length) {
  console.error(wrong.join("\n"));
  process.exit(1);
}
