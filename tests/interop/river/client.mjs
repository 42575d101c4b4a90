// Calls every procedure of the reference services with the reference client: node client.mjs URL CODEC
// Prints one line of JSON a call, `{"name", "result"}`; the Rust test compares them with what is expected.
import { createClient } from '@replit/river';
import { BinaryCodec, NaiveJsonCodec } from '@replit/river/codec';
import { WebSocketClientTransport } from '@replit/river/transport/ws/client';
import { WebSocket } from 'ws';

const [url, codec] = process.argv.slice(2);
const transport = new WebSocketClientTransport(async () => new WebSocket(url), 'node-client', {
  codec: codec === 'binary' ? BinaryCodec : NaiveJsonCodec,
});
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
say('count', await all(client.count.subscribe({ n: 3 }).resReadable));
say('subErr', await all(client.subErr.subscribe({}).resReadable));

const sum = client.sum.upload({});
for (const n of [1, 2, 3]) sum.reqWritable.write({ n });
sum.reqWritable.close();
say('sum', await sum.finalize());

const echo = client.echoStream.stream({ prefix: '>' });
echo.reqWritable.write({ i: 0, msg: 'm0' });
echo.reqWritable.write({ i: 1, msg: 'm1' });
echo.reqWritable.close();
say('echoStream', await all(echo.resReadable));

const stop = new AbortController();
const forever = client.forever.subscribe({ intervalMs: 5 }, { signal: stop.signal });
const got = [];
for await (const result of forever.resReadable) {
  got.push(result.ok);
  if (got.length === 3) stop.abort();
}
say('forever', got);

// A cut in the middle: the sockets are closed under the session.
const counted = client.count.subscribe({ n: 40, intervalMs: 10 });
setTimeout(() => {
  for (const session of transport.sessions.values()) session._handleClose?.() ?? session.conn?.close();
}, 150);
say('count over a cut', (await all(counted.resReadable)).map((result) => result.ok && result.payload.i));
transport.close();
process.exit(0);
