// The console: shows the view that the address names, and provides documents, events and changes to it.
import { carry } from "./carry.js";
import { button, element, empty } from "./figures.js";
import { actor } from "./changes.js";

const ALERTS_MS = 5000;
const main = document.querySelector("main");
let leave = () => {};  // called when the shown view is left
let shownNumber = 0, alertsShown = "[]";

/** The view, name and parameters in an address: `#/VIEW/NAME?key=value`. */
function placeOf(hash) {
  const [path, query] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const [view, ...name] = path.split("/").map(decode);
  return { view, name: name.join("/"), params: Object.fromEntries(new URLSearchParams(query ?? "")) };
}

function decode(text) {
  try { return decodeURIComponent(text); } catch { return text; }
}

/** The permalink of a view, name and parameters. */
export function link(view, name = "", params = {}) {
  const path = [view, ...(name ? name.split("/") : [])].map(encodeURIComponent).join("/");
  const kept = Object.entries(params).filter(([, value]) => value !== null && value !== undefined && value !== "");
  return `#/${path}${kept.length ? `?${new URLSearchParams(kept)}` : ""}`;
}

const encoded = name => name.split("/").map(encodeURIComponent).join("/");

/** Gets JSON from a relative address, with the key if one was given. Throws an Error with the server's sentence. */
async function ask(path, params = {}) {
  const query = new URLSearchParams(Object.entries(params).filter(([, value]) => value !== undefined && value !== ""));
  return page.act.reading(`${path}${query.size ? `?${query}` : ""}`);
}

/** The interface that views are given. */
const page = {
  live: false,
  act: actor(document.body),
  views: [],
  link,
  /** Whether the console has the view. */
  has: name => page.views.includes(name),
  ask,
  load: (view, name = "", params = {}) => ask(`data/${view}${name ? `/${encoded(name)}` : ""}.json`, page.live ? params : {}),
  /** Changes the permalink's parameters; with `quiet` the view is not rendered again. */
  go(params, { quiet = false } = {}) {
    const { view, name } = placeOf(location.hash);
    const next = link(view, name, params);
    if (quiet) history.replaceState(null, "", next); else location.hash = next;
  },
  /** Calls the handler with each event of a relative address until the view is left; returns a function that ends it. */
  events(path, handler) {
    if (!page.live) return () => {};
    const source = new EventSource(path);
    source.onmessage = event => handler(JSON.parse(event.data));
    source.onopen = () => said("live");
    source.onerror = () => said("no connection");
    // A browser opens at most six HTTP/1.1 connections to a server for all tabs together: a hidden tab closes its own.
    const turn = () => { if (document.hidden) source.close(); else page.refresh(); };
    const end = () => { document.removeEventListener("visibilitychange", turn); source.close(); };
    document.addEventListener("visibilitychange", turn);
    page.leaving(() => { end(); said(""); });
    return end;
  },
  /** Calls the handler whenever a document changes. */
  follow: (view, name, handler) => page.events(`events/${view}${name ? `/${encoded(name)}` : ""}`, handler),
  /** Renders the view again, with new documents. */
  refresh: () => dispatchEvent(new HashChangeEvent("hashchange")),
  /** Registers an action for when the view is left. */
  leaving(action) { const before = leave; leave = () => { action(); before(); }; },
};

function said(state) {
  document.querySelector("#live").textContent = state;
}

async function show(index) {
  const place = placeOf(location.hash);
  const view = index.views.find(one => one.name === place.view) ?? index.views[0];
  for (const one of document.querySelectorAll("nav a")) one.toggleAttribute("aria-current", one.hash === link(view.name));
  document.title = `${place.name ? `${place.name} · ` : ""}${view.title} · Tenfold`;
  leave();
  leave = () => {};
  const number = ++shownNumber;
  const fresh = element("div", { class: `view ${view.name}` }, element("h1", {}, place.name ? `${view.title}: ${place.name}` : view.title));
  main.setAttribute("aria-busy", "true");
  try {
    const { show } = await import(`./${view.name}.js`);
    await show(fresh, place, page);
  } catch (error) {
    fresh.append(empty(error.message));
  }
  if (number !== shownNumber) return;  // another view was chosen meanwhile
  const here = location.hash || "#/";
  const settle = main.dataset.shown === here ? carry(main) : () => {};
  main.replaceChildren(fresh);
  settle(main);
  main.removeAttribute("aria-busy");
  main.dataset.shown = here;
  fresh.dispatchEvent(new Event("placed"));
}

function showAlerts(alerts) {
  const now = JSON.stringify(alerts);
  if (now === alertsShown) return;  // so that a screen reader does not read them again
  alertsShown = now;
  const items = alerts.map(alert => element("p", { class: "alert" }, element("a", { href: alert.place }, alert.sentence)));
  document.querySelector("#alerts").replaceChildren(...items);
}

async function lookForAlerts() {
  if (document.hidden) return;
  const index = await ask("data/console.json").catch(() => null);  // the server may be down for a while
  if (index) showAlerts(index.alerts);
}

function setScheme(scheme) {
  document.documentElement.dataset.scheme = scheme;
  document.querySelector("#scheme").textContent = scheme === "dark" ? "Light" : "Dark";
  for (const plot of document.querySelectorAll(".plot")) plot.dispatchEvent(new Event("scheme"));
}

function chooseScheme() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const now = () => localStorage.getItem("tenfold-scheme") ?? (system.matches ? "dark" : "light");
  system.addEventListener("change", () => setScheme(now()));
  document.querySelector("#scheme").addEventListener("click", () => {
    localStorage.setItem("tenfold-scheme", now() === "dark" ? "light" : "dark");
    setScheme(now());
  });
  setScheme(now());
}

async function begin() {
  chooseScheme();
  try {
    const index = await ask("data/console.json");
    page.live = index.live;
    const views = index.views.filter(view => index.live || !view.private);
    page.views = views.map(view => view.name);
    document.querySelector("nav").replaceChildren(...views.map(view => element("a", { href: link(view.name) }, view.title)));
    showAlerts(index.alerts);
    if (index.live) setInterval(lookForAlerts, ALERTS_MS);
    addEventListener("hashchange", () => show(index));
    await show(index);
  } catch (error) {
    main.replaceChildren(empty(error.message), button("Try again", () => location.reload()));
  }
}

begin();
