// Drives the page at `/` of a running server in a real browser, as a visitor would.
//
//   npm install playwright-core && node tests/page/page.mjs 'http://127.0.0.1:9090/#token=…' [directory for screenshots] [--insecure]
//
// What --insecure and CHROMIUM mean is in browser.mjs. Ends with 0 when everything held.

import assert from 'node:assert/strict';
import { launch, words } from './browser.mjs';

const [url, shots] = words;
assert(url, 'usage: page.mjs URL [directory for screenshots] [--insecure]');
const browser = await launch();

try {
  for (const [name, width, height, colorScheme] of [['wide-light', 1280, 900, 'light'], ['wide-dark', 1280, 900, 'dark'],
    ['narrow-light', 390, 844, 'light'], ['narrow-dark', 390, 844, 'dark']]) {
    await visit(name, { viewport: { width, height }, colorScheme });
  }
} finally {
  await browser.close();
}

async function visit(name, options) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  const faults = [];
  page.on('pageerror', error => faults.push(error.message));
  page.on('console', line => { if (line.type() === 'error') faults.push(line.text()); });
  const shot = async step => { if (shots) await page.screenshot({ path: `${shots}/${name}-${step}.png`, fullPage: true }); };
  const topic = `page.${name}.${Date.now()}`;

  await page.goto(url);
  assert(!page.url().includes('token='), 'the token leaves the address bar');
  await page.getByText('ready', { exact: true }).waitFor();
  await shot('1-opened');

  const first = page.getByRole('region', { name: 'Client 1' });
  await join(first, topic);
  await shot('2-subscribed');
  await page.getByRole('button', { name: 'Second client' }).click();
  const second = page.getByRole('region', { name: 'Client 2' });
  await join(second, topic);

  // What was typed arrives as it was typed, numbers of any length and markup included.
  const data = '{"big": 12345678901234567890.10, "html": "<img src=x onerror=alert(1)>", "list": [1, 2, {}], "z": "ü\\"}"}';
  await first.getByLabel('Topic to publish to').fill(topic);
  await first.getByLabel('Data').fill(data);
  await first.getByLabel('Data').press('Control+Enter');
  await first.getByText('2 subscribers matched · 2 queued · 0 dropped').waitFor();
  for (const client of [first, second]) {
    const row = client.locator('.log li.in', { hasText: `message · ${topic}` });
    await row.getByText('12345678901234567890.10').waitFor();
    assert.equal(await row.locator('img').count(), 0, 'foreign text is text');
  }
  await first.getByLabel('Not to myself').check();
  await first.getByRole('button', { name: 'Publish' }).click();
  await first.getByText('1 subscriber matched').waitFor();
  await first.getByLabel('Data').fill('{not json');
  await first.getByRole('button', { name: 'Publish' }).click();
  await first.getByText('not valid JSON').waitFor();
  await first.getByRole('button', { name: 'Ping' }).click();
  await first.locator('.log li.in', { hasText: 'pong' }).waitFor();
  await shot('3-published');

  await second.getByRole('button', { name: `Unsubscribe from ${topic}` }).click();
  await second.getByText(`Unsubscribed from ${topic}`).waitFor();
  await second.getByRole('button', { name: 'Disconnect' }).click();
  await second.getByText('1000: closed normally').waitFor();
  assert.equal(await second.getByRole('button', { name: 'Subscribe', exact: true }).isDisabled(), true);

  const overflow = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
  assert.equal(overflow, 0, 'nothing sticks out at the side');
  assert.deepEqual(faults, []);
  await context.close();
}

async function join(client, topic) {
  await client.getByRole('button', { name: 'Connect' }).click();
  await client.getByText('Connected', { exact: true }).waitFor();
  await client.getByLabel('Topic to subscribe to').fill(topic);
  await client.getByRole('button', { name: 'Subscribe', exact: true }).click();
  await client.getByRole('button', { name: `Unsubscribe from ${topic}` }).waitFor();
}
