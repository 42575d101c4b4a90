// `useChat` of @ai-sdk/react, in React itself, resumes chats from the daemon at TOWPATH_URL.
import assert from "node:assert/strict";
import { useChat } from "@ai-sdk/react";
import { createElement } from "react";
import { create } from "react-test-renderer";
import { run, until } from "./api.mjs";
import { answering, textOf, transport } from "./chat.mjs";

// A page that shows one chat: what it shows, and how it is left.
function open(id) {
  const page = { renders: 0 };
  const over = transport();
  const Page = () => {
    page.chat = useChat({ id, resume: true, transport: over });
    page.renders += 1;
    return createElement("p", null, textOf(page.chat.messages.at(-1)));
  };
  const root = create(createElement(Page));
  page.shows = () => root.toJSON()?.children?.join("") ?? "";
  page.leave = () => root.unmount();
  return page;
}

await run({
  "a page resumes in mid-answer, and so does one on a second device": async () => {
    const { id, say, end } = await answering();
    const one = open(id);
    await until("the first words", () => one.shows() === "Once ");
    await say("upon a ");
    const two = open(id);
    await until("both show all of it", () => one.shows() === "Once upon a " && two.shows() === "Once upon a ");
    await say("time.");
    await end();
    for (const page of [one, two]) {
      await until("it is ready", () => page.chat.status === "ready" && page.shows() === "Once upon a time.");
      assert.equal(page.chat.messages.length, 1);
      page.leave();
    }
  },

  "a page that is opened after the answer has ended is ready": async () => {
    const { id, end } = await answering();
    await end();
    const page = open(id);
    await until("it has asked and is ready", () => page.renders > 0 && page.chat.status === "ready");
    await page.chat.resumeStream();
    assert.deepEqual([page.chat.status, page.chat.error, page.shows()], ["ready", undefined, ""]);
    page.leave();
  },

  "stop works while resuming, and only leaves": async () => {
    const { id, say, end } = await answering();
    const [leaving, staying] = [open(id), open(id)];
    await until("both see it", () => leaving.shows() === "Once " && staying.shows() === "Once ");
    await leaving.chat.stop();
    await until("it has left", () => leaving.chat.status === "ready");
    await say("more.");
    await end();
    await until("the other one has all of it", () => staying.shows() === "Once more." && staying.chat.status === "ready");
    assert.equal(leaving.shows(), "Once ");
    [leaving, staying].forEach((page) => page.leave());
  },
});
