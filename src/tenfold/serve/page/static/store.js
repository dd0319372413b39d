// Stores the conversations in this browser (IndexedDB). Each has a record of its own, so that two tabs do not overwrite each other's
// conversations, and a short record for the list.
import { holds, title } from "./conversation.js";

const NAME = "tenfold-chats", HEADS = "heads", WHOLE = "conversations";

const done = request => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

export class Store {
  /** `changed` is called with the id of each conversation that another tab has changed. */
  constructor(changed) {
    this.others = new BroadcastChannel(NAME);
    this.others.onmessage = event => changed(event.data);
  }

  async #stores(mode) {
    this.opening ??= this.#open();
    const transaction = (await this.opening).transaction([HEADS, WHOLE], mode);
    return { heads: transaction.objectStore(HEADS), whole: transaction.objectStore(WHOLE), end: new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () => reject(transaction.error);
    }) };
  }

  #open() {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore(HEADS, { keyPath: "id" });
      request.result.createObjectStore(WHOLE, { keyPath: "id" });
    };
    return done(request).catch(error => { throw new Error(`This browser keeps no conversations: ${error.message}`); });
  }

  /** The id, title and time of the last change of each conversation, the latest first. */
  async list() {
    const { heads } = await this.#stores("readonly");
    return (await done(heads.getAll())).sort((a, b) => b.changed - a.changed);
  }

  async get(id) {
    return done((await this.#stores("readonly")).whole.get(id));
  }

  async all() {
    return done((await this.#stores("readonly")).whole.getAll());
  }

  /** The ids of the conversations that contain all of `words`. */
  async search(words) {
    const found = new Set(), { whole } = await this.#stores("readonly"), request = whole.openCursor();
    for (let cursor; (cursor = await done(request)); cursor.continue()) if (holds(cursor.value, words)) found.add(cursor.value.id);
    return found;
  }

  async put(...conversations) {
    const { heads, whole, end } = await this.#stores("readwrite");
    for (const one of conversations) {
      heads.put({ id: one.id, title: title(one), changed: one.changed });
      whole.put(one);
    }
    await end;
    for (const { id } of conversations) this.others.postMessage(id);
  }

  async remove(id) {
    const { heads, whole, end } = await this.#stores("readwrite");
    heads.delete(id);
    whole.delete(id);
    await end;
    this.others.postMessage(id);
  }
}
