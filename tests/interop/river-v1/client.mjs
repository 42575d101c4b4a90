// Calls the reference services with a reference client that speaks v1.1: node client.mjs URL CODEC ID
// The URL is ws://… or unix:PATH. Prints one line of JSON a call, `{"name", "result"}`; the Rust test compares them
// with what is expected. This version of the protocol has no cancellation, says its heartbeats itself, and its
// handshake does not say where the client stands.
import { createClient } from '@replit/river';
import { BinaryCodec, NaiveJsonCodec } from '@replit/river/codec';
import { UnixDomainSocketClientTransport } from '@replit/river/transport/uds/client';
import { WebSocketClientTransport } from '@replit/river/transport/ws/client';
import { WebSocket } from 'ws';

const [url, codec, id] = process.argv.slice(2);
const options = { codec: codec === 'binary' ? BinaryCodec : NaiveJsonCodec };
const transport = url.startsWith('unix:')
  ? new UnixDomainSocketClientTransport(url.slice('unix:'.length), id, options)
  : new WebSocketClientTransport(async () => new WebSocket(url), id, options);
const client = createClient(transport, 'SERVER').interop;
const say = (name, result) => console.log(JSON.stringify({ name, result }));
const all = async (readable) => {
  const results = [];
  for await (const result of readable) results.push(result);
  return results;
};

say('echo', await client.echo.rpc({ msg: 'é', n: 1.5, list: [1, null] }));
say('divide', await client.divide.rpc({ a: 6, b: 3 }));
say('divide by zero', await client.divide.rpc({ a: 1, b: 0 }));
say('throws', await client.throws.rpc({}));
say('cancels', await client.cancels.rpc({}));
say('whoami', (await client.whoami.rpc({})).payload.from);

const [counts] = await client.count.subscribe({ n: 3 });
say('count', await all(counts));
const [failures] = await client.subErr.subscribe({});
say('subErr', await all(failures));

const [summed, sum] = await client.sum.upload({});
for (const n of [1, 2, 3]) summed.push({ n });
summed.end();
say('sum', await sum);

const [lines, echoed] = await client.echoStream.stream({ prefix: '>' });
lines.push({ i: 0, msg: 'm0' });
lines.push({ i: 1, msg: 'm1' });
const first = [(await echoed.next()).value, (await echoed.next()).value];
lines.end();
say('echoStream', [...first, ...(await all(echoed))]);

const [thrown, boom] = await client.throwStream.stream({});
thrown.push({ i: 0, msg: 'm0' });
say('throwStream', await all(boom));

const [forever, stop] = await client.forever.subscribe({ intervalMs: 5 });
const got = [];
for await (const result of forever) {
  got.push(result.ok);
  if (got.length === 3) stop();
}
say('forever', got.slice(0, 3));

// A cut in the middle: the link is closed under the session.
const [counted] = await client.count.subscribe({ n: 40, intervalMs: 10 });
setTimeout(() => {
  for (const connection of transport.connections.values()) connection.close();
}, 150);
say('count over a cut', (await all(counted)).map((result) => result.ok && result.payload.i));
say('stats', (await client.stats.rpc({})).payload.openStreams);
transport.close();
process.exit(0);
