// Talks to a running server through the WebSocket of a real browser, as code of a page does: compression, sizes, fan-out between
// pages, and what becomes of a connection in codes and reasons. Ends with a drain, which stops the server.
//
//   node tests/page/sockets.mjs 'http://127.0.0.1:9090/#token=…' ws://127.0.0.1:8080 CONFIG_FILE [--insecure]
//
// The second argument is where the sockets are: `ws://` or `wss://`, the latter with --insecure where the certificate is nobody's.
// CONFIG_FILE is the file that the server was started with; it is rewritten. TIDEWHEEL_ADMIN_KEY is the server's key. What
// --insecure and CHROMIUM mean is in browser.mjs.

import assert from 'node:assert/strict';
import { readFileSync, writeFileSync } from 'node:fs';
import { launch, words } from './browser.mjs';

const [url, sockets, config] = words;
assert(url && sockets && config, 'usage: sockets.mjs PAGE SOCKETS CONFIG_FILE [--insecure]');
const token = new URL(url).hash.replace('#token=', '');
const admin = new URL(url).origin;
const browser = await launch();

try {
  const page = await open();
  await echoes(page);
  await fanOut(page, await open());
  await ends(page);
  await endsOfImpatience(page);
  await drains(page);
} finally {
  await browser.close();
}

// A page of the server's own origin, with `Peer` in it.
async function open() {
  const page = await (await browser.newContext()).newPage();
  await page.goto(`${admin}/livez`);
  await page.evaluate(definePeer);
  await page.evaluate(([sockets, token]) => Object.assign(window, { sockets, token }), [sockets, token]);
  return page;
}

// Runs in the page: a socket whose messages are awaited one by one.
function definePeer() {
  window.Peer = class {
    constructor(path, protocols = []) {
      this.messages = [];
      this.awaited = [];
      this.socket = new WebSocket(window.sockets + path, protocols);
      this.socket.binaryType = 'arraybuffer';
      this.opened = new Promise(resolve => { this.socket.onopen = () => resolve(this); });
      this.ended = new Promise(resolve => {
        this.socket.onclose = ({ code, reason, wasClean }) => resolve({ code, reason, wasClean });
      });
      this.socket.onmessage = ({ data }) => {
        const take = this.awaited.shift();
        if (take) take(data); else this.messages.push(data);
      };
    }

    next() {
      const early = this.messages.length > 0;
      const message = early ? Promise.resolve(this.messages.shift()) : new Promise(resolve => this.awaited.push(resolve));
      const end = this.ended.then(end => { throw new Error(`closed: ${JSON.stringify(end)}`); });
      return early ? message : Promise.race([message, end]);
    }

    say(type, payload = {}) {
      this.socket.send(JSON.stringify({ type, payload }));
    }

    // The payload of the next message of this type; others are passed over.
    async until(type) {
      for (;;) {
        const message = JSON.parse(await this.next());
        if (message.type === type) return message.payload;
      }
    }

    // Authenticated the way that only browsers need: they can set no header.
    static async member() {
      const peer = await new window.Peer('/ws', ['tidewheel.v1', `bearer.${window.token}`]).opened;
      await peer.until('auth_result');
      return peer;
    }

    // How it ends, and the last word before that.
    async parted() {
      const last = await this.until('disconnect');
      return { ...await this.ended, last };
    }
  };
}

// Texts and binaries around every boundary there is: nothing, the short and the long lengths of frames, the least size that is
// compressed, the largest message.
async function echoes(page) {
  const before = await counts();
  const { extensions, sent } = await page.evaluate(async () => {
    const peer = await new Peer('/echo').opened;
    const chance = n => crypto.getRandomValues(new Uint8Array(n));
    const noise = size => {
      const bytes = new Uint8Array(size);
      for (let at = 0; at < size; at += 65536) bytes.set(chance(Math.min(65536, size - at)), at);
      return bytes;
    };
    // Some regularity, but less than `max_ratio` allows.
    const text = size => Array.from({ length: size / 3 + 1 }, (_, at) => `${at * at % 9973} `).join('').slice(0, size);
    const hasSame = (one, two) => one.byteLength === two.byteLength && one.every((byte, at) => byte === two[at]);
    let sent = 0;
    for (const size of [0, 1, 125, 126, 127, 255, 256, 257, 1000, 4096, 65535, 65536, 65537, 300_000, 1_000_000]) {
      for (const message of [text(size), noise(size), new Uint8Array(Math.min(size, 65536))]) {
        peer.socket.send(message);
        sent += 1;
        const echo = await peer.next();
        const isSame = typeof message === 'string' ? echo === message : hasSame(new Uint8Array(echo), message);
        if (!isSame) throw new Error(`${size} bytes came back changed (${typeof message})`);
      }
    }
    const letters = Array.from({ length: 10_000 }, (_, at) => `aü€😀\u0000"\\${at * at}`).join('');
    peer.socket.send(letters);
    if (await peer.next() !== letters) throw new Error('letters came back changed');
    peer.socket.close(1000);
    await peer.ended;
    return { extensions: peer.socket.extensions, sent: sent + 1 };
  });
  assert.match(extensions, /^permessage-deflate\b/, 'the browser agreed on compression');
  const after = await counts();
  // The server, what is not short and not noise: nine texts, nine times zeros, the letters.
  assert.deepEqual([after.inflated - before.inflated, after.deflated - before.deflated], [sent, 19], 'messages compressed');
}

// Compressed messages in and out so far, over all shards.
async function counts() {
  const text = await (await fetch(`${admin}/metrics`)).text();
  const sum = start => text.split('\n').filter(line => line.startsWith(start.name) && line.includes(start.label))
    .reduce((all, line) => all + Number(line.split(' ').at(-1)), 0);
  return {
    inflated: sum({ name: 'websocket_inflated_messages_total{', label: 'outcome="inflated"' }),
    deflated: sum({ name: 'websocket_deflated_messages_total{', label: 'outcome="compressed"' }),
  };
}

// Two sockets on each of two pages: what one publishes comes to all, in order, short and long.
async function fanOut(...pages) {
  const topic = `sockets.${Date.now()}`;
  await Promise.all(pages.map(page => page.evaluate(async topic => {
    window.members = [await Peer.member(), await Peer.member()];
    for (const member of members) {
      member.say('subscribe', { topic });
      await member.until('ack');
    }
  }, topic)));
  const data = [0, 1, 20, 30, 500, 10_000].map((words, number) => {
    return { number, text: Array.from({ length: words }, (_, at) => `tide ${at * at} € `).join('') };
  });
  const receipts = await pages[0].evaluate(async ([topic, data]) => {
    const publisher = await Peer.member();
    const receipts = [];
    for (const one of data) {
      publisher.say('publish', { topic, data: one });
      receipts.push(await publisher.until('ack'));
    }
    publisher.socket.close(1000);
    await publisher.ended;
    return receipts;
  }, [topic, data]);
  for (const { matched, queued, dropped } of receipts) assert.deepEqual([matched, queued, dropped], [4, 4, 0]);
  for (const page of pages) {
    const came = await page.evaluate(async count => {
      const came = [];
      for (const member of members) {
        const own = [];
        while (own.length < count) own.push((await member.until('message')).data);
        came.push(own);
      }
      members.forEach(member => member.socket.close(1000));
      await Promise.all(members.map(member => member.ended));
      return came;
    }, data.length);
    assert.deepEqual(came, [data, data]);
  }
}

// Codes and reasons as the page's code sees them.
async function ends(page) {
  const own = (code, reason) => page.evaluate(async ([code, reason]) => {
    const peer = await new Peer('/echo').opened;
    peer.socket.close(code, reason);
    return peer.ended;
  }, [code, reason]);
  assert.deepEqual(await own(1000, 'done'), { code: 1000, reason: '', wasClean: true });
  assert.deepEqual(await own(4321, 'ours'), { code: 4321, reason: '', wasClean: true });

  const large = await page.evaluate(async () => {
    const peer = await new Peer('/echo').opened;
    const noise = Array.from({ length: 20 }, () => crypto.getRandomValues(new Uint8Array(50_001)));
    peer.socket.send(new Blob(noise));
    return peer.ended;
  });
  expect(large, 1009, /limit 1000000$/);

  const stranger = await page.evaluate(async () => {
    const peer = await new Peer('/ws').opened;
    peer.say('authenticate', { token: 'not.a.token' });
    const result = await peer.until('auth_result');
    return { result, ...await peer.parted() };
  });
  assert.equal(stranger.result.authenticated, false);
  expect(stranger, 4501, /./);

  // One more than the client may have: the oldest goes.
  const evicted = await page.evaluate(async () => {
    const members = [];
    while (members.length < 6) members.push(await Peer.member());
    const evicted = await members.shift().parted();
    members.forEach(member => member.socket.close(1000));
    await Promise.all(members.map(member => member.ended));
    return evicted;
  });
  expect(evicted, 4503, /./);

  const closed = page.evaluate(async () => {
    const member = await Peer.member();
    member.say('subscribe', { topic: 'closed.by.operator' });
    await member.until('ack');
    window.subscribed = true;
    return member.parted();
  });
  await page.waitForFunction(() => window.subscribed);
  await order('disconnect', { topic: 'closed.by.operator', reason: 'moved' });
  expect(await closed, 4504, /^moved$/);

  const flood = await page.evaluate(async () => {
    const member = await Peer.member();
    for (let number = 0; number < 3000; number += 1) member.say('ping');
    const end = await member.parted();
    return { ...end, unsent: member.socket.bufferedAmount };
  });
  // A browser calls no close clean before which it could not send all that the page gave it.
  expect({ ...flood, wasClean: flood.wasClean || flood.unsent > 0 }, 4505, /./);

  const wrong = await page.evaluate(async () => {
    const member = await Peer.member();
    for (let number = 0; number < 50; number += 1) member.socket.send('not JSON');
    return member.parted();
  });
  expect(wrong, 4506, /./);
}

// Ends that come with time, after a reload that makes it short.
async function endsOfImpatience(page) {
  const short = 'websocket: {max_connections_per_client: 5, idle_timeout_seconds: 1}\nauth: {timeout: 1s}\n';
  writeFileSync(config, readFileSync(config, 'utf8').replace(/^websocket:.*\n/m, short));
  await order('reload');
  const [idle, unknown] = await page.evaluate(async () => {
    const parted = async peer => (await peer).parted();
    return Promise.all([parted(Peer.member()), parted(new Peer('/ws').opened)]);
  });
  expect(idle, 4001, /./);
  expect(unknown, 4502, /./);
  const long = 'websocket: {max_connections_per_client: 5}\n';
  writeFileSync(config, readFileSync(config, 'utf8').replace(short, long));
  await order('reload');
}

async function drains(page) {
  const drained = page.evaluate(async () => {
    const member = await Peer.member();
    member.say('subscribe', { topic: 'until.the.drain' });
    await member.until('ack');
    window.waiting = true;
    return member.parted();
  });
  await page.waitForFunction(() => window.waiting);
  const [end] = await Promise.all([drained, order('drain', {})]);
  expect(end, 1012, /^\{"retry_after_ms":\d+\}$/);
  assert.equal(end.last.reconnect, true);
  assert.equal(JSON.parse(end.reason).retry_after_ms, end.last.retry_after_ms);
}

// A close that the server began: its code and reason, and the same code in the message before, if there was one.
function expect({ code, reason, wasClean, last }, expected, pattern) {
  assert.deepEqual([code, last?.code ?? code, wasClean], [expected, expected, true]);
  assert.match(reason, pattern, `the reason of ${expected}`);
  console.log(`sockets: ${code} ${reason}`);
}

async function order(what, body) {
  const answer = await fetch(`${admin}/api/${what}`, {
    method: 'POST',
    headers: { Authorization: `Bearer ${process.env.TIDEWHEEL_ADMIN_KEY}`, 'Content-Type': 'application/json' },
    body: body && JSON.stringify(body),
  });
  assert(answer.ok, `${what}: ${answer.status} ${await answer.text()}`);
}
