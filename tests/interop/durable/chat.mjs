// A chat as the AI SDK keeps it, on a stream of the daemon at TOWPATH_URL, and the worker that answers in it.
import { AbstractChat, DefaultChatTransport } from "ai";
import { api, begin, unique, url } from "./api.mjs";

// What a user interface keeps of a chat.
class State {
  status = "ready";
  error = undefined;
  messages = [];
  pushMessage = (message) => void this.messages.push(message);
  popMessage = () => void this.messages.pop();
  replaceMessage = (at, message) => void (this.messages[at] = structuredClone(message));
  snapshot = (value) => structuredClone(value);
}

export class Chat extends AbstractChat {
  constructor(id) {
    super({ id, state: new State(), transport: transport() });
  }
}

export const transport = () =>
  new DefaultChatTransport({
    prepareReconnectToStreamRequest: ({ id }) => ({ api: `${url}/v1/streams/${id}/live?format=aisdk` }),
  });

export const textOf = (message) => (message?.parts ?? []).filter((part) => part.type === "text").map((part) => part.text).join("");
export const shown = (chat) => textOf(chat.messages.at(-1));

// A chat whose answer is being produced: in chunks of the SDK, and its first words are said.
export async function answering() {
  const id = `chat-${unique()}`;
  await api("PUT", `/v1/streams/${id}`, {});
  const turn = await begin(id);
  await turn.parts(
    { type: "start", messageId: `answer-${id}` },
    { type: "text-start", id: "1" },
    { type: "text-delta", id: "1", delta: "Once " },
  );
  const say = (...words) => turn.parts(...words.map((delta) => ({ type: "text-delta", id: "1", delta })));
  const end = async () => {
    await turn.parts({ type: "text-end", id: "1" }, { type: "finish" });
    await turn.finish();
  };
  return { id, turn, say, end };
}

export async function within(what, promise) {
  const late = new Promise((_, reject) => setTimeout(() => reject(new Error(`${what}: it hangs`)), 60_000).unref());
  return Promise.race([promise, late]);
}
