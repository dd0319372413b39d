// The chat page of `tenfold serve` as a tab. Its requests go to the console, which forwards them to the server.
import { element, empty } from "./figures.js";

let host = null;  // kept while other views are shown, so that an answer continues

export async function show(main, place, page) {
  if (!page.live) return main.append(empty("The chat needs a console that is running:", "tenfold console --server http://127.0.0.1:8000"));
  if (!host) {
    await page.ask("chat/health");  // throws an error with the sentence to show where there is no server
    host = await mounted();
  }
  main.append(host);
}

async function mounted() {
  const key = sessionStorage.getItem("tenfold-key");
  if (key) sessionStorage.tenfoldKey ??= key;  // so that the key is asked for only once
  const style = element("link", { rel: "stylesheet", href: "page/chat.css" });
  document.head.append(style);
  const [{ mount }] = await Promise.all([import("../page/chat.js"), new Promise(done => { style.onload = style.onerror = done; })]);
  const box = element("div");
  mount(box, { server: "chat" });
  return box;
}
