// Clicks through the dashboard of the daemon at TOWPATH_URL, in light and dark, wide and at a phone's
// width. With TOWPATH_TOKEN, types it in first. With SHOTS, a folder, leaves a picture of each part there.
// Exits with what is wrong.
import { chromium } from "playwright-core";

const { CHROMIUM, TOWPATH_URL: url, TOWPATH_TOKEN: token, SHOTS } = process.env;
const browser = await chromium.launch({
  executablePath: CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const wrong = [];
const views = [
  { name: "light", colorScheme: "light", width: 1280 },
  { name: "dark", colorScheme: "dark", width: 1280 },
  { name: "phone", colorScheme: "dark", width: 390 },
];
for (const { name, colorScheme, width } of views) {
  const page = await browser.newPage({ viewport: { width, height: 860 }, colorScheme, acceptDownloads: true });
  page.setDefaultTimeout(20000);
  let signedIn = !token;
  // Before the token is given, being turned away is what should happen.
  page.on("console", (m) => m.type() === "error" && signedIn && wrong.push(`${name}: ${m.text()} ${m.location().url}`));
  page.on("pageerror", (error) => wrong.push(`${name}: ${error.message}`));
  const sockets = new Set();
  page.on("websocket", (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
  });
  page.on("request", (request) => {
    const { protocol, origin } = new URL(request.url());
    if (!["data:", "blob:"].includes(protocol) && origin !== new URL(url).origin) wrong.push(`${name}: asked ${request.url()}`);
    if (token && request.url().includes(token)) wrong.push(`${name}: the token is in ${request.url()}`);
  });
  const step = async (what, act) => {
    try {
      await act();
    } catch (error) {
      wrong.push(`${name}: ${what}: ${error.message.split("\n")[0]}`);
    }
  };
  const fits = async (what) => {
    const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    if (over > 0) wrong.push(`${name}: ${what} is ${over} pixels too wide`);
    if (SHOTS) await page.screenshot({ path: `${SHOTS}/${name}-${what}.png` });
  };
  const tab = (part) => page.click(`nav button[data-tab=${part}]`);
  await step("opens", () => page.goto(`${url}/`));
  if (token) {
    await step("says that a token is needed", () => page.waitForSelector("#problem:not([hidden]) >> text=Give a token above"));
    await step("takes a token", async () => {
      await page.fill("#token", token);
      await page.click("#auth button");
      await page.waitForSelector("#link.good");
      await page.waitForSelector("#problem", { state: "hidden" });
      signedIn = true;
    });
  }
  await step("is ready and live", async () => {
    await page.waitForSelector("#health.good");
    await page.waitForSelector("#link.good");
  });
  await step("finds a stream", async () => {
    await page.fill("#stream-filter", "chat/1");
    await page.waitForFunction(() => document.querySelectorAll("#stream-rows tr[tabindex]").length === 1);
  });
  await step("follows it", async () => {
    await page.click("#stream-rows tr[tabindex]");
    await page.waitForSelector("#messages li >> text=hello from a test");
  });
  await step("counts its followers", () =>
    page.waitForFunction(() => Number(document.querySelector("#stream-rows tr[tabindex] td:nth-child(4)").textContent) >= 1));
  await step("appends and sees it come back", async () => {
    await page.fill("#append-text", `said in ${name}`);
    await page.click("#append button");
    await page.waitForSelector(`#messages li >> text=said in ${name}`);
  });
  await fits("streams");
  await step("shows an agent's value", async () => {
    await tab("agents");
    await page.waitForSelector("#agent-cards dd >> text=12%");
  });
  await fits("agents");
  await step("lists connections and filters them", async () => {
    await tab("connections");
    await page.waitForSelector("#connection-rows td >> text=192.0.2.7");
    await page.fill("#connection-filter input[name=agent_name]", "nobody");
    await page.click("#connection-filter button:not([type])");
    await page.waitForSelector("#connection-rows >> text=No connection matches");
    await page.fill("#connection-filter input[name=agent_name]", "");
    await page.click("#connection-filter button:not([type])");
    await page.waitForSelector("#connection-rows td >> text=192.0.2.7");
  });
  await step("exports them", async () => {
    const [download] = await Promise.all([page.waitForEvent("download"), page.click("#export-csv")]);
    const chunks = [];
    for await (const chunk of await download.createReadStream()) chunks.push(chunk);
    const text = Buffer.concat(chunks).toString();
    if (!text.includes("192.0.2.7")) throw new Error(`the export is ${text.slice(0, 200)}`);
  });
  await fits("connections");
  await step("cuts a pipe and sees it recover", async () => {
    await tab("pipes");
    const card = page.locator("#pipe-cards .card").first();
    await card.waitFor();
    const times = () => card.locator("dt:text-is('recovered') + dd").textContent();
    const before = parseInt(await times());
    await card.locator("button.danger").click();
    await page.waitForFunction((n) => {
      const labels = [...document.querySelectorAll("#pipe-cards .card dt")];
      return labels.some((dt) => dt.textContent === "recovered" && parseInt(dt.nextSibling.textContent) > n);
    }, before);
    await page.waitForSelector("#pipe-cards li >> text=recovered");
  });
  await fits("pipes");
  await step("names the replica", async () => {
    await tab("replicas");
    await page.waitForSelector("#replica-rows tr td");
  });
  await fits("replicas");
  await step("draws the engine", async () => {
    await tab("engine");
    await page.waitForSelector("#engines h2 >> text=spool");
    await page.waitForFunction(() => document.querySelectorAll("#plots polyline").length >= 6);
    await page.waitForFunction(() => document.querySelector("#plots polyline").getAttribute("points").split(" ").length > 1);
    await page.waitForSelector("#figure-rows tr");
  });
  await fits("engine");
  if (sockets.size !== 1) wrong.push(`${name}: ${sockets.size} sockets are open`);
  const told = await page.isVisible("#problem") ? await page.textContent("#problem-text") : "";
  if (told) wrong.push(`${name}: the page says: ${told}`);
  await page.close();
}
await browser.close();
if (wrong.length) {
  console.error(wrong.join("\n"));
  process.exit(1);
}
