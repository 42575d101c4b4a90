// A reference server that speaks v1.1 and nothing else: node server.mjs CODEC
// Prints the port it listens on, then a line for each handshake it refuses.
import http from 'node:http';
import { Ok, Procedure, ServiceSchema, createServer } from '@replit/river';
import { BinaryCodec, NaiveJsonCodec } from '@replit/river/codec';
import { WebSocketServerTransport } from '@replit/river/transport/ws/server';
import { Type } from '@sinclair/typebox';
import { WebSocketServer } from 'ws';

const interop = ServiceSchema.define({
  echo: Procedure.rpc({
    input: Type.Any(),
    output: Type.Any(),
    errors: Type.Never(),
    handler: async (_context, input) => Ok(input),
  }),
});
const server = http.createServer();
const transport = new WebSocketServerTransport(new WebSocketServer({ server }), 'SERVER', {
  codec: process.argv[2] === 'binary' ? BinaryCodec : NaiveJsonCodec,
});
transport.addEventListener('protocolError', ({ type, message }) => console.log(`${type}: ${message}`));
createServer(transport, { interop });
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
