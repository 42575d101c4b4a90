// The protocol's own client reads and writes against the daemon at TOWPATH_URL.
import assert from "node:assert/strict";
import { DurableStream, IdempotentProducer, stream } from "@durable-streams/client";
import { api, begin, run, unique, until, url } from "./api.mjs";

const numbers = (from, to) => Array.from({ length: to - from }, (_, at) => ({ n: from + at }));

// Follows until `count` items have come, in either live mode.
async function follow(at, live, count) {
  const read = await stream({ url: at, offset: "-1", live });
  const items = [];
  await new Promise((resolve, reject) => {
    const leave = read.subscribeJson((batch) => {
      items.push(...batch.items);
      if (items.length >= count) resolve(leave());
    });
    setTimeout(() => reject(new Error(`${live}: ${items.length} of ${count} came`)), 60_000).unref();
  });
  return items;
}

await run({
  "appends, reads, follows and closes": async () => {
    const at = `${url}/v1/stream/client/${unique()}`;
    const handle = await DurableStream.create({ url: at, contentType: "application/json" });
    await Promise.all(numbers(0, 20).map((it) => handle.append(JSON.stringify(it))));
    assert.equal((await (await stream({ url: at, live: false })).json()).length, 20);
    const followers = ["sse", "long-poll"].map((live) => follow(at, live, 60));
    const producer = new IdempotentProducer(handle, "producer-1", { lingerMs: 1, maxBatchBytes: 64 });
    numbers(20, 60).forEach((it) => producer.append(JSON.stringify(it)));
    await producer.flush();
    for (const items of await Promise.all(followers)) {
      assert.deepEqual(items.map(({ n }) => n).sort((a, b) => a - b), numbers(0, 60).map(({ n }) => n));
      assert.deepEqual(items.slice(20), numbers(20, 60), "a producer's messages keep their order");
    }
    await producer.close(JSON.stringify({ n: "last" }));
    const whole = await (await stream({ url: at, live: true })).json();
    assert.equal(whole.length, 61, "a closed stream ends");
    await assert.rejects(handle.append(JSON.stringify({})), "nothing goes into a closed stream");
    await DurableStream.delete({ url: at });
  },

  "writes of either door are read at the other": async () => {
    const name = `client/${unique()}`;
    await api("PUT", `/v1/streams/${name}`, {});
    await api("POST", `/v1/streams/${name}/messages`, { role: "user", content: { text: "hello" } });
    const handle = new DurableStream({ url: `${url}/v1/stream/${name}`, contentType: "application/json" });
    await handle.append(JSON.stringify({ text: "and back" }));
    assert.deepEqual(await (await handle.stream({ live: false })).json(), [{ text: "hello" }, { text: "and back" }]);
    const turn = await begin(name);
    const live = follow(`${url}/v1/stream/${name}`, "sse", 3);
    await turn.parts("an ", "answer");
    await turn.commit("an answer");
    await turn.finish();
    assert.deepEqual((await live)[2], "an answer", "what a turn commits is the next message");
  },

  "a turn is a stream of its own for those who come late": async () => {
    const name = `client/${unique()}`;
    await api("PUT", `/v1/streams/${name}`, {});
    const turn = await begin(name);
    await turn.parts("one", "two");
    const early = fetch(`${url}/v1/streams/${name}/turns/${turn.turn}`);
    await (await early).body.cancel();
    const reader = fetch(`${url}/v1/streams/${name}/turns/${turn.turn}`).then((response) => response.text());
    await turn.commit("one two");
    await turn.parts("three");
    await turn.commit("three");
    await turn.finish();
    const whole = '"one"\n"two"\n"three"\n';
    assert.equal(await reader, whole);
    const late = await until("a late reader", async () => {
      const response = await fetch(`${url}/v1/streams/${name}/turns/${turn.turn}`);
      return response.ok && response.text();
    });
    assert.equal(late, whole, "the turn has ended, and is still there in full");
  },
});
