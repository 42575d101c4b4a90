// Serves part of the reference services with the reference server: node server.mjs CODEC
// Prints the port it listens on.
import http from 'node:http';
import { Err, Ok, Procedure, createServer, createServiceSchema } from '@replit/river';
import { BinaryCodec, NaiveJsonCodec } from '@replit/river/codec';
import { WebSocketServerTransport } from '@replit/river/transport/ws/server';
import { Type } from '@sinclair/typebox';
import { WebSocketServer } from 'ws';

const ServiceSchema = createServiceSchema();
const tick = Type.Object({ i: Type.Number() });
const line = Type.Object({ i: Type.Number(), msg: Type.String() });
const interop = ServiceSchema.define({
  echo: Procedure.rpc({
    requestInit: Type.Any(),
    responseData: Type.Any(),
    handler: async ({ reqInit }) => Ok(reqInit),
  }),
  divide: Procedure.rpc({
    requestInit: Type.Object({ a: Type.Number(), b: Type.Number() }),
    responseData: Type.Object({ result: Type.Number() }),
    responseError: Type.Object({
      code: Type.Literal('DIV_BY_ZERO'),
      message: Type.String(),
      extras: Type.Object({ test: Type.String() }),
    }),
    handler: async ({ reqInit: { a, b } }) =>
      b === 0
        ? Err({ code: 'DIV_BY_ZERO', message: 'Cannot divide by zero', extras: { test: 'abc' } })
        : Ok({ result: a / b }),
  }),
  throws: Procedure.rpc({
    requestInit: Type.Object({}),
    responseData: Type.Object({}),
    handler: async () => {
      throw new Error('boom');
    },
  }),
  count: Procedure.subscription({
    requestInit: Type.Object({ n: Type.Number(), intervalMs: Type.Optional(Type.Number()) }),
    responseData: tick,
    handler: async ({ reqInit: { n, intervalMs }, resWritable }) => {
      for (let i = 0; i < n; i++) {
        if (intervalMs) await new Promise((resolve) => setTimeout(resolve, intervalMs));
        resWritable.write(Ok({ i }));
      }
      resWritable.close();
    },
  }),
  sum: Procedure.upload({
    requestInit: Type.Object({}),
    requestData: Type.Object({ n: Type.Number() }),
    responseData: Type.Object({ total: Type.Number(), count: Type.Number() }),
    handler: async ({ reqReadable }) => {
      let [total, count] = [0, 0];
      for await (const request of reqReadable) {
        if (!request.ok) break;
        total += request.payload.n;
        count += 1;
      }
      return Ok({ total, count });
    },
  }),
  echoStream: Procedure.stream({
    requestInit: Type.Object({ prefix: Type.Optional(Type.String()) }),
    requestData: line,
    responseData: line,
    handler: async ({ reqInit: { prefix = '' }, reqReadable, resWritable }) => {
      for await (const request of reqReadable) {
        if (!request.ok) break;
        resWritable.write(Ok({ ...request.payload, msg: prefix + request.payload.msg }));
      }
      resWritable.close();
    },
  }),
});

const server = http.createServer();
const transport = new WebSocketServerTransport(new WebSocketServer({ server }), 'SERVER', {
  codec: process.argv[2] === 'binary' ? BinaryCodec : NaiveJsonCodec,
});
createServer(transport, { interop });
server.listen(0, '127.0.0.1', () => console.log(server.address().port));
