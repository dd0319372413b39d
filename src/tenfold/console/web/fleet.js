// The fleet: who holds which slot and why, operators' wishes, and simulated days.
import { chart, stacked } from "./chart.js";
import { button, element, empty, facts, fileLink, section, table } from "./figures.js";
import { showDay } from "./day.js";

const UNITS = [["hours", 3600], ["minutes", 60], ["seconds", 1]];

export async function show(main, place, page) {
  if (place.name) return showDay(main, place, page);
  const found = await page.load("fleet");
  if (found.empty) main.append(empty("This home has no fleet yet. Run one by", found.empty));
  const body = element("div");
  if (found.fleet && page.live) main.append(section("New wish", wishForm(found.fleet, page)));
  main.append(body, simulations(found, page));
  tell(body, found.fleet, page);
  page.follow("fleet", "", async () => tell(body, (await page.load("fleet")).fleet, page));
}

/** The state in the ledger. Times are shown by the system clock; their titles have the values in the ledger. */
function tell(body, fleet, page) {
  body.replaceChildren();
  if (!fleet) return;
  const time = figure => figure && clock(figure, fleet.ahead_s);
  body.append(element("p", {}, fleet.controller ? "A controller runs." : "No controller runs: ", fleet.controller ? "" : element("code", {}, "tenfold fleet run")));
  body.append(section("Slots", table(["slot", "owner", "role", "since", "until", "price of return", "why"], fleet.slots.map(one => [one.slot, one.owner, one.work ? `${one.role}: ${one.work}` : one.role, time(one.since), time(one.until) ?? "", one.price, one.why]), "Who holds which slot")));
  if (fleet.wishes.length) body.append(section("Open wishes", wishes(fleet, time, page)));
  roles(body, fleet);
  for (const pool of fleet.pools) seen(body, pool, fleet.pools.length > 1 ? ` of ${pool.name}` : "");
  body.append(section("Moves", table(["lease", "slot", "to", "since", "until", "back in time", "lost work", "why"], fleet.moves.map(one => [one.lease, one.slot, one.role, time(one.since), time(one.until) ?? "", one.in_time ?? "", one.lost ?? "", one.why]), "The newest moves and their reasons")));
}

function clock({ value, file, key }, ahead) {
  const at = new Date(1000 * (value - ahead));
  const day = at.toDateString() === new Date().toDateString() ? "" : `${at.toLocaleDateString("en-CA")} `;
  return element("span", { class: "figure", title: `${value} s (${file}, ${key})`, "data-value": JSON.stringify(value), "data-file": file, "data-key": key }, day + at.toLocaleTimeString("en-GB"));
}

/** The number of slots by role over the last day, as steps: a count holds until the next change. */
function roles(body, { roles: { at, roles: counts } }) {
  const last = at.at(-1);
  const [unit, size] = UNITS.find(([, size]) => last - at[0] > 2 * size) ?? UNITS.at(-1);
  const places = at.map(time => (time - last) / size);
  const x = places.flatMap((place, i) => i ? [place - 1e-9, place] : [place]);
  const steps = values => values.flatMap((value, i) => i ? [values[i - 1], value] : [value]);
  const names = Object.keys(counts).sort((a, b) => (a === "switching") - (b === "switching") || a.localeCompare(b));
  chart(body, { title: "Slots by role over the last day", xLabel: `${unit} ago`, unit: "slots", x, series: stacked(names.map(label => ({ label, amounts: steps(counts[label]) }))) });
}

/** What the controller saw of a pool in the last day: each service's demand with its forecast, and busy nodes with the power limit. */
function seen(body, { at, services, busy, allowed }, of) {
  const last = at.at(-1), [unit, size] = UNITS.find(([, size]) => last - at[0] > 2 * size) ?? UNITS.at(-1);
  const x = at.map(time => (time - last) / size), xLabel = `${unit} before the last entry`;
  for (const [name, { rate, answers, middle, high }] of Object.entries(services)) {
    const forecast = middle.some(value => value !== null) ? [{ label: "forecast, made one bin before", values: middle, low: middle, high }] : [];
    chart(body, { title: `Demand of ${name}${of}`, xLabel, unit: "requests/s", x, series: [{ label: "requests", values: rate }, ...forecast, { label: "throughput of the nodes", values: answers }] });
  }
  const limit = allowed.some(value => value !== null) ? [{ label: "allowed by power", values: allowed }] : [];
  chart(body, { title: `Busy nodes${of}`, xLabel, unit: "nodes", x, series: [{ label: "busy", values: busy }, ...limit] });
}

function wishes(fleet, time, page) {
  const back = one => page.live ? button("Withdraw", event => act(event.target, () => page.act(`act/fleet/withdraw/${one.id}`)), { "aria-label": `Withdraw wish ${one.id}` }) : "";
  const what = one => one.kind === "cap" ? one.mw : one.role ?? "";
  return table(["wish", "by", "kind", "target", "to", "until", "state", "why", "change"], fleet.wishes.map(one => [one.id, one.who, one.kind, one.target, what(one), time(one.until), `${one.state}: ${one.said}`, one.why, back(one)]), "Wishes of operators");
}

/** Makes a change, and shows the result or the server's error beside the button. */
async function act(pressed, change) {
  const said = pressed.nextElementSibling ?? pressed.parentElement.appendChild(element("span", { role: "status" }));
  pressed.disabled = true;
  try {
    const made = await change();
    said.textContent = `Wish ${made.id}: ${made.state}. ${made.said}`;
  } catch (error) {
    said.textContent = error.message;
  }
  pressed.disabled = false;
}

/** The form for wishes to lend, drain or cap, as `tenfold fleet lend|drain|cap`. */
function wishForm({ targets }, page) {
  const lists = Object.entries(targets).map(([id, values]) => element("datalist", { id }, values.map(value => element("option", { value }))));
  const field = (name, label, more = {}) => element("label", {}, label, element("input", { name, ...more }));
  const kind = element("select", { name: "kind", onchange: () => fit() }, ["lend", "drain", "cap"].map(value => element("option", { value }, value)));
  const [target, role, mw] = [field("target", "Slot, owner or site", { list: "slots", required: true }), field("role", "To the role", { list: "roles", value: "chat" }), field("mw", "Megawatts", { type: "number", min: 0, step: "any" })];
  const send = element("button", {}, "Send");
  const form = element("form", { class: "wishes", onsubmit: event => {
    event.preventDefault();
    act(send, () => page.act("act/fleet/wish", wanted(new FormData(form))));
  } }, element("label", {}, "Kind", kind), target, role, mw, field("until", "Until, such as 18:00", { placeholder: "18:00" }), field("why", "Why"), send, lists);
  const fit = () => { role.hidden = kind.value !== "lend"; mw.hidden = kind.value !== "cap"; };
  fit();
  return form;
}

function wanted(form) {
  const kind = form.get("kind");
  const said = Object.fromEntries([...form].filter(([name, value]) => value && (name !== "role" || kind === "lend") && (name !== "mw" || kind === "cap")));
  return said.mw ? { ...said, mw: Number(said.mw) } : said;
}

function simulations(found, page) {
  const links = found.simulations.map(name => element("li", {}, element("a", { href: page.link("fleet", name) }, name)));
  return section("Simulated days", links.length ? element("ul", {}, links) : empty("None yet. Simulate a fleet file by", found.simulate));
}
