// Requests to the server. What goes wrong is an Error whose message is one sentence.
import { createParser } from "./libraries.js";

// A server sends an answer in many small pieces. Those that come while the page waits are read in one go.
const BETWEEN_READS_MS = 50, WAITED_MS = 1;
const UNREACHED = "The server cannot be reached: is it running?";

/** An answer that ended before it was whole, since its connection did. */
export class Cut extends Error {}

export class Client {
  /** `askKey` is called where the server wants a key, and gives one or null. A key is kept for this tab alone. */
  constructor(server, askKey) {
    Object.assign(this, { server, askKey });
  }

  async ask(path, method = "GET", body, signal) {
    const headers = { "content-type": "application/json" };
    if (sessionStorage.tenfoldKey) headers.authorization = `Bearer ${sessionStorage.tenfoldKey}`;
    let reply;
    try {
      reply = await fetch(this.server + path, { method, headers, signal, body: body && JSON.stringify(body) });
    } catch (error) {
      throw error.name === "AbortError" ? error : new Error(UNREACHED);
    }
    if (reply.ok) return reply;
    const key = reply.status === 401 && await this.askKey();
    if (!key) throw new Error(await failure(reply));
    sessionStorage.tenfoldKey = key;
    return this.ask(path, method, body, signal);
  }

  async json(path, method, body) {
    const reply = await this.ask(path, method, body);
    try {
      return await reply.json();
    } catch {
      throw new Error(`The server's answer to ${path} is not JSON: is this address a proxy's?`);
    }
  }

  /** Gives `take` each object of a streamed answer as it comes. Throws Cut where the answer ends before it is whole. */
  async stream(path, body, signal, take) {
    const reply = await this.ask(path, "POST", body, signal), type = reply.headers.get("content-type") ?? "";
    if (!type.startsWith("text/event-stream")) throw new Error(`The server answered with ${type || "an unknown type"} in place of a stream.`);
    let whole = false;
    const parser = createParser({ onEvent: ({ data }) => { if (data === "[DONE]") whole = true; else take(parsed(data)); } });
    const reader = reply.body.getReader(), decoder = new TextDecoder();
    try {
      for (let part, asked = performance.now(); !(part = await next(reader)).done; asked = performance.now()) {
        parser.feed(decoder.decode(part.value, { stream: true }));
        if (performance.now() - asked > WAITED_MS) await new Promise(go => setTimeout(go, BETWEEN_READS_MS));
      }
    } finally {
      reader.cancel().catch(() => {});
    }
    if (!whole) throw new Cut();
  }
}

async function next(reader) {
  try {
    return await reader.read();
  } catch (error) {
    throw error.name === "AbortError" ? error : new Cut();
  }
}

function parsed(data) {
  let event;
  try {
    event = JSON.parse(data);
  } catch {
    throw new Error("The server sent an event that is not JSON.");
  }
  if (event.error) throw new Error(event.error.message ?? String(event.error));
  return event;
}

async function failure(reply) {
  try {
    return (await reply.json()).error.message;
  } catch {
    return `The server answered ${reply.status} ${reply.statusText}.`;
  }
}
