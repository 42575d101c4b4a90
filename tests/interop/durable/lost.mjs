// A worker falls silent in mid-answer; whoever started this lets the daemon at TOWPATH_URL wait 2 s for one.
import assert from "node:assert/strict";
import { readUIMessageStream } from "ai";
import { api, begin, run, unique, until } from "./api.mjs";
import { Chat, shown, textOf, transport, within } from "./chat.mjs";

await run({
  "an answer whose worker is lost ends with an error": async () => {
    for (const on_lost of ["pending", "failed"]) {
      const id = `chat-${unique()}`;
      await api("PUT", `/v1/streams/${id}`, { on_lost });
      await (await begin(id)).parts("Once ", "upon ");
      const chat = new Chat(id);
      const resumed = chat.resumeStream();
      await within(`the reader of a stream that is then ${on_lost}`, resumed);
      assert.deepEqual([chat.status, shown(chat)], ["error", "Once upon "], on_lost);
      assert.match(String(chat.error), /lost/);
      // The same again finds nobody who answers.
      assert.equal(await transport().reconnectToStream({ chatId: id }), null);
    }
  },

  "what a lost worker had committed is a whole answer": async () => {
    const id = `chat-${unique()}`;
    await api("PUT", `/v1/streams/${id}`, {});
    const turn = await begin(id);
    await turn.parts("Once ");
    const stream = await transport().reconnectToStream({ chatId: id });
    await turn.commit("Once ");
    let last;
    const read = async () => {
      for await (const message of readUIMessageStream({ stream })) last = message;
    };
    await within("the reader", read());
    assert.equal(textOf(last), "Once ");
    await until("the stream waits", async () => (await api("GET", `/v1/streams/${id}/state`)).status === "pending");
  },
});
