// The dashboard with a token that may only follow: it shows what may be seen, offers nothing that would be
// refused, and asks for nothing that is. Exits with what is wrong.
import { chromium } from "playwright-core";

const { CHROMIUM, TOWPATH_URL: url, TOWPATH_TOKEN: token } = process.env;
const browser = await chromium.launch({
  executablePath: CHROMIUM,
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const wrong = [];
const page = await browser.newPage();
page.setDefaultTimeout(20000);
let signedIn = false;
page.on("pageerror", (error) => wrong.push(error.message));
page.on("response", (answer) => signedIn && answer.status() >= 400 && wrong.push(`${answer.status()} for ${answer.url()}`));
try {
  await page.goto(`${url}/`);
  await page.waitForSelector("#problem:not([hidden])");
  await page.fill("#token", token);
  await page.click("#auth button");
  await page.waitForSelector("#who >> text=follower: follower");
  await page.waitForSelector("#link.good");
  await page.waitForSelector("#problem", { state: "hidden" });
  signedIn = true;
  await page.fill("#stream-filter", "chat/1");
  await page.click("#stream-rows tr[tabindex] >> text=chat/1");
  await page.waitForSelector("#messages li >> text=hello from a test");
  // Two looks: what is refused would be refused in one of them.
  for (let looks = 0; looks < 2; looks++) await page.waitForResponse((answer) => answer.url().includes("/v1/streams?"));
  for (const part of ["#append", "#interrupt", "nav [data-tab=agents]", "nav [data-tab=connections]", "nav [data-tab=pipes]", "nav [data-tab=replicas]"]) {
    if (await page.isVisible(part)) wrong.push(`${part} is offered`);
  }
  await page.click("nav button[data-tab=engine]");
  await page.waitForSelector("#engines >> text=needs the role admin");
} catch (error) {
  wrong.push(error.message.split("\n")[0]);
}
await browser.close();
if (wrong.length) {
  console.error(wrong.join("\n"));
  process.exit(1);
}
