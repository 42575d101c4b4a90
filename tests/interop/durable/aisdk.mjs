// The class behind `useChat`, and the SDK's own reader, resume chats from the daemon at TOWPATH_URL.
import assert from "node:assert/strict";
import { readUIMessageStream } from "ai";
import { api, begin, run, unique, until, url } from "./api.mjs";
import { answering, Chat, shown, textOf, transport, within } from "./chat.mjs";

await run({
  "a chat resumes in mid-answer, on a second device too": async () => {
    const { id, say, end } = await answering();
    const [one, two] = [new Chat(id), new Chat(id)];
    const first = one.resumeStream();
    await until("the first words", () => shown(one) === "Once ");
    await say("upon ", "a ");
    await until("what came since", () => shown(one) === "Once upon a ");
    const second = two.resumeStream();
    await until("the second device has all of it", () => shown(two) === "Once upon a ");
    await say("time.");
    await end();
    await within("both end", Promise.all([first, second]));
    for (const chat of [one, two]) {
      assert.equal(shown(chat), "Once upon a time.");
      assert.equal(chat.status, "ready");
      assert.equal(chat.messages.length, 1);
      assert.equal(chat.messages[0].id, `answer-${id}`);
    }
  },

  "after the answer has ended there is nothing to resume": async () => {
    const { id, turn, end } = await answering();
    await end();
    const response = await fetch(`${url}/v1/streams/${id}/live?format=aisdk`);
    assert.equal(response.status, 204);
    assert.equal(await transport().reconnectToStream({ chatId: id }), null);
    const chat = new Chat(id);
    await within("resuming nothing", chat.resumeStream());
    assert.deepEqual([chat.status, chat.messages.length], ["ready", 0]);
    assert.equal(turn.turn, 1);
  },

  "stop works while resuming, and only leaves": async () => {
    const { id, say, end } = await answering();
    const [leaving, staying] = [new Chat(id), new Chat(id)];
    const left = leaving.resumeStream();
    const stayed = staying.resumeStream();
    await until("both see it", () => shown(leaving) === "Once " && shown(staying) === "Once ");
    await leaving.stop();
    await within("the one that left", left);
    assert.equal(leaving.status, "ready");
    await say("more.");
    await end();
    await within("the one that stayed", stayed);
    assert.equal(shown(staying), "Once more.");
  },

  "an interrupt stops the worker, and readers see the end": async () => {
    const { id, turn } = await answering();
    const chat = new Chat(id);
    const resumed = chat.resumeStream();
    await until("it is seen", () => shown(chat) === "Once ");
    await api("POST", `/v1/streams/${id}/interrupt`, { reason: "stop" });
    await until("the worker hears of it", async () => (await turn.alive()).interrupted);
    await turn.abort();
    await within("the reader", resumed);
    assert.deepEqual([chat.status, shown(chat)], ["ready", "Once "]);
  },

  "an end that the producer never said is said all the same": async () => {
    const { id, turn } = await answering();
    const chat = new Chat(id);
    const resumed = chat.resumeStream();
    await until("it is seen", () => shown(chat) === "Once ");
    await turn.finish({ status: "failed", error: "the model is away" });
    await within("the reader", resumed);
    assert.equal(chat.status, "error");
    assert.match(String(chat.error), /the model is away/);
  },

  "plain strings are one block of text to the SDK's reader": async () => {
    const id = `chat-${unique()}`;
    await api("PUT", `/v1/streams/${id}`, {});
    const turn = await begin(id);
    await turn.parts("Hel", { text: "lo" });
    const stream = await transport().reconnectToStream({ chatId: id });
    await turn.commit("Hello");
    await turn.finish();
    let last;
    for await (const message of readUIMessageStream({ stream })) last = message;
    assert.equal(textOf(last), "Hello");
  },
});
