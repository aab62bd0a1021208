// Looks at the chat page in headless Chromium: node browser.mjs MODULES ADDRESS FOLDER. Prints what it saw as JSON.
import { createRequire } from "node:module";
import { readFileSync } from "node:fs";
const [modules, address, folder] = process.argv.slice(2);
const require = createRequire(modules + "/");
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
});
const seen = { axe: [], console: [], overflow: [], foreign: [], keyboard: {}, composed: {}, direction: {} };
const serious = async (page, where) => {
  // The page's own policy forbids foreign scripts: axe comes in through the debugger, not through the page.
  await page.evaluate(axe);
  const found = await page.evaluate(() => window.axe.run(document));
  for (const each of found.violations) seen.axe.push(`${where}: ${each.id}: ${each.nodes.map((node) => node.html).slice(0, 2)}`);
};
for (const scheme of ["light", "dark"]) {
  for (const [width, height] of [[360, 740], [768, 1024], [1280, 800]]) {
    const context = await browser.newContext({ viewport: { width, height }, colorScheme: scheme });
    const page = await context.newPage();
    page.on("console", (message) => message.type() === "error" && !/503/.test(message.text()) && seen.console.push(message.text()));
    page.on("request", (request) => request.url().startsWith(address) || request.url().startsWith("data:") || seen.foreign.push(request.url()));
    await page.goto(address);
    await page.waitForFunction(() => document.querySelectorAll("#model option").length > 0);
    const at = `${scheme}-${width}`;
    await page.evaluate(() => { document.getElementById("max_tokens").value = "24"; });
    await page.fill("#question", "What is a list? Show `code`.");
    await page.keyboard.press("Enter");
    await page.waitForSelector("#send:not([hidden])", { timeout: 60000 });
    await page.waitForFunction(() => !document.querySelector(".writing"), null, { timeout: 60000 });
    await page.evaluate(() => { messages.push({ role: "assistant", content: "# Head\n**Bold** and `code`\n\n- one\n- two\n\n```\nx = [1, 2]\n```", tool_calls: [{ function: { name: "get_weather", arguments: '{"city":"Paris"}' } }] }); redraw(); });
    await page.screenshot({ path: `${folder}/chat-${at}.png` });
    await serious(page, `chat ${at}`);
    if (await page.evaluate(() => document.documentElement.scrollWidth > window.innerWidth)) seen.overflow.push(at);
    await page.evaluate(() => { messages = [{ role: "user", content: "ما هي القائمة؟" }, { role: "assistant", content: "القائمة هي قيم.\n\n- واحد\n\n```\nx = 1\n```\nEnglish.\n\n| a | b |\n|---|---|\n| 1 | 2 |" }]; redraw(); });
    await page.screenshot({ path: `${folder}/rtl-${at}.png` });
    await serious(page, `rtl ${at}`);
    if (await page.evaluate(() => document.documentElement.scrollWidth > window.innerWidth)) seen.overflow.push(`rtl ${at}`);
    seen.direction[at] = await page.evaluate(() => Object.fromEntries(["p", "ul", "pre", "p:last-of-type", "table"].map((name) => [name, getComputedStyle(document.querySelector(".turn.assistant .said > " + name)).direction])));
    await page.click("#show-passport");
    await page.waitForSelector("#passport[open] dl");
    await page.screenshot({ path: `${folder}/passport-${at}.png` });
    await serious(page, `passport ${at}`);
    await page.keyboard.press("Escape");
    await page.click("#show-controls");
    await page.waitForSelector("#controls[open] #features tr");
    await page.screenshot({ path: `${folder}/controls-${at}.png` });
    await serious(page, `controls ${at}`);
    await page.keyboard.press("Escape");
    await context.close();
  }
}
// The whole page without a mouse: everything is reached by Tab, and the switch is turned off and on.
const page = await (await browser.newContext({ viewport: { width: 1280, height: 800 } })).newPage();
await page.goto(address);
await page.waitForFunction(() => document.querySelectorAll("#model option").length > 0);
// An input method: Enter ends a composition, and sends nothing.
const debug = await page.context().newCDPSession(page);
await page.focus("#question");
await debug.send("Input.imeSetComposition", { text: "か", selectionStart: 1, selectionEnd: 1 });
await page.keyboard.press("Enter");
seen.composed.sent = await page.evaluate(() => messages.length);
seen.composed.sentBySafari = await page.evaluate(() => { const event = new KeyboardEvent("keydown", { key: "Enter", keyCode: 229, bubbles: true, cancelable: true }); document.getElementById("question").dispatchEvent(event); return event.defaultPrevented; });
seen.provenance = await page.evaluate(() => document.getElementById("provenance").textContent);
await page.reload();
await page.waitForFunction(() => document.querySelectorAll("#model option").length > 0);
const reach = async (id) => {
  for (let turn = 0; turn < 60; turn++) {
    if (await page.evaluate((name) => document.activeElement && document.activeElement.id === name, id)) return true;
    await page.keyboard.press("Tab");
  }
  return false;
};
seen.keyboard.newSession = await reach("new-kept");
await page.keyboard.press("Enter");
await page.waitForSelector("#session-list li");
seen.keyboard.question = await reach("question");
await page.evaluate(() => { document.getElementById("max_tokens").value = "400"; });
await page.keyboard.type("Tell me a long story.");
await page.keyboard.press("Enter");
await page.waitForFunction(() => document.querySelector(".turn.assistant .said")?.textContent.length > 4, null, { timeout: 60000 });
await page.keyboard.press("Escape");
await page.waitForFunction(() => document.getElementById("stop").hidden, null, { timeout: 5000 });
seen.keyboard.stopped = await page.evaluate(() => document.getElementById("log").textContent.includes("Stopped."));
seen.keyboard.passport = await reach("show-passport");
await page.keyboard.press("Enter");
await page.waitForSelector("#passport[open]");
await page.keyboard.press("Escape");
seen.keyboard.controls = await reach("show-controls");
await page.keyboard.press("Enter");
await page.waitForSelector("#controls[open]");
seen.keyboard.off = await reach("off");
await page.keyboard.press("Enter");
await page.waitForFunction(() => document.getElementById("receipt").textContent.startsWith("Off within"), null, { timeout: 10000 });
seen.keyboard.receipt = await page.evaluate(() => document.getElementById("receipt").textContent);
seen.keyboard.blocked = await page.evaluate(() => document.getElementById("question").disabled);
await page.screenshot({ path: `${folder}/controls-off.png` });
seen.keyboard.on = await reach("on");
await page.keyboard.press("Enter");
await page.waitForFunction(() => document.getElementById("switch-state").textContent.startsWith("The switch is on"), null, { timeout: 10000 });
await browser.close();
console.log(JSON.stringify(seen, null, 1));
