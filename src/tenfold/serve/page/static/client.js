// Requests to the server. Failures are thrown as an Error whose message is one sentence.
import { createParser } from "./libraries.js";

// A server sends an answer in many small pieces. After a read that had to wait, the page pauses, so that it reads several at once.
const BETWEEN_READS_MS = 50, WAITED_MS = 1;
const UNREACHED = "The server cannot be reached: is it running?";

/** The connection ended before the answer was complete. */
export class Cut extends Error {}

export class Client {
  /** `askKey` is called if the server requires a key, and resolves to one or null. The key is kept for this tab only. */
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

  /** Calls `take` with each object of a streamed answer as it comes. Throws Cut if the answer ends before it is complete. */
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
