// A simulated day: a comparison of policies, nodes by role with demand, forecast and power, and a player for the day.
import { chart, stacked } from "./chart.js";
import { button, element, facts, figure, fileLink, section, table, words } from "./figures.js";
import { drawn } from "./marks.js";

const ROLES = ["training", "answering", "starting", "saving", "idle", "down"];
const [AHEAD_H, LATEST, STRIP] = [1, 30, 1000];  // horizon of the forecast, number of moves shown, width of the strip

export async function showDay(main, place, page) {
  const found = await page.load("fleet", place.name);
  const policy = found.policies.includes(place.params.policy) ? place.params.policy : found.policies[0];
  const day = { ...found.days[policy], file: found.files[0], policy, begins_h: found.day_begins_s / 3600 };
  const choose = element("select", { "aria-label": "Policy", onchange: () => page.go({ ...place.params, policy: choose.value }) }, found.policies.map(name => element("option", { selected: name === policy }, name)));
  main.append(element("p", {}, found.title, ". ", found.files.flatMap(file => [fileLink(file), " "])));
  const part = section(`Day ${Math.floor(day.begins_h / 24) + 1}, the busiest, under one policy`, element("label", {}, "Policy ", choose));
  const [drawing, moves] = [element("div"), section("Moves and their reasons")];
  main.append(part, drawing, moves);
  const columns = machines(day);
  const pictures = draw(drawing, day, columns);
  play({ part, after: moves }, { day, columns, pictures }, place, page);
  main.append(section("Comparison of policies", table(["figure", ...found.policies], found.rows.map(row => [row.name, ...row.figures]), "Means over seeds, with 95 % intervals")));
}

/** The columns with the hour of the day and the idle nodes added. */
function machines({ columns, begins_h: begins }) {
  const idle = columns.nodes.map((nodes, i) => Math.max(0, nodes - columns.training[i] - columns.answering[i] - columns.starting[i] - columns.saving[i]));
  return { ...columns, idle, hours: columns.at_h.map(at => at - begins) };
}

function draw(part, day, columns) {
  const x = columns.hours;
  const machine = chart(part, { title: `Nodes by role under ${day.policy}`, xLabel: "hour of the day", unit: "nodes", x, series: stacked(ROLES.map((label, i) => ({ label, amounts: columns[label], colour: [0, 1, 3, 2, 7, 5][i] }))) });
  const ahead = x.map(hour => hour + AHEAD_H).filter(hour => hour <= x.at(-1));
  const forecast = { label: "forecast one hour before, median to 90 %", x: ahead, values: columns.middle.slice(0, ahead.length), low: columns.middle.slice(0, ahead.length), high: columns.high.slice(0, ahead.length), colour: 0, dash: 1 };
  const demand = chart(part, { title: "Demand, forecast and throughput of the nodes", xLabel: "hour of the day", unit: "requests/s", x, series: [{ label: "requests", values: columns.rate, colour: 1, dash: 0 }, forecast, { label: "throughput of the nodes", values: columns.can, colour: 7, dash: 2 }] });
  const capped = columns.cap_w.some(watts => watts !== null);
  const megawatts = values => values.map(watts => watts === null ? null : watts / 1e6);
  const power = chart(part, { title: "Power and its cap", xLabel: "hour of the day", unit: "MW", x, series: [{ label: "power", values: megawatts(columns.watts), colour: 2, dash: 0 }, ...(capped ? [{ label: "cap", values: megawatts(columns.cap_w), colour: 5, dash: 1 }] : [])] });
  return [machine, demand, power];
}

/** The player: a clock, the nodes by role at its hour as a strip, and the moves until then with their reasons. */
function play({ part, after }, { day, columns, pictures }, place, page) {
  const [first, last] = [columns.hours[0], columns.hours.at(-1)];
  const state = { hour: Math.min(last, Math.max(first, Number(place.params.hour) || first)), timer: null };
  const [strip, now, moves] = [drawn("svg", { viewBox: `0 0 ${STRIP} 40`, preserveAspectRatio: "none", class: "strip", "aria-hidden": "true" }), element("div", { class: "now" }), element("div", { class: "moves" })];
  const speed = element("input", { type: "number", value: 1, min: 0.01, max: 24, step: "any" });
  const slider = element("input", { type: "range", min: first, max: last, step: 1 / 60, "aria-label": "Hour of the day", oninput: () => { state.hour = Number(slider.value); showAt(); } });
  const showAt = () => {
    slider.value = state.hour;
    slider.setAttribute("aria-valuetext", told(state.hour));
    showNow(columns, state.hour, strip, now);
    showMoves(day, state.hour, moves);
    pictures.forEach(one => one.cursor(state.hour));
  };
  const stop = () => { cancelAnimationFrame(state.timer); state.timer = null; pressed.textContent = "Play"; page.go({ ...place.params, policy: day.policy, hour: state.hour.toFixed(2) }, { quiet: true }); };
  const pressed = button("Play", () => {
    if (state.timer !== null) return stop();
    if (state.hour >= last) state.hour = first;
    pressed.textContent = "Pause";
    run(state, last, () => Number(speed.value) || 1, showAt, stop);
  });
  slider.addEventListener("change", () => page.go({ ...place.params, policy: day.policy, hour: state.hour.toFixed(2) }, { quiet: true }));
  page.leaving(() => cancelAnimationFrame(state.timer));
  part.append(element("div", { class: "tools play", role: "group", "aria-label": "Play the day" }, pressed, slider, element("label", {}, speed, " hours per second")), strip, now);
  after.append(moves);
  showAt();
}

/** Advances the clock on each animation frame until the day is over. */
function run(state, last, hoursASecond, showAt, stop) {
  let before = performance.now();
  const frame = at => {
    state.hour = Math.min(last, state.hour + hoursASecond() * Math.max(0, at - before) / 1000);
    before = at;
    showAt();
    if (state.hour >= last) stop(); else state.timer = requestAnimationFrame(frame);
  };
  state.timer = requestAnimationFrame(frame);
}

const told = hour => { const minutes = Math.floor(60 * hour + 1e-6); return `${String(Math.floor(minutes / 60)).padStart(2, "0")}:${String(minutes % 60).padStart(2, "0")}`; };

/** The last sample at or before an hour. */
const sampleAt = (hours, hour) => Math.max(0, hours.findLastIndex(one => one <= hour + 1e-9));

function showNow(columns, hour, strip, now) {
  const i = sampleAt(columns.hours, hour);
  const whole = ROLES.reduce((sum, role) => sum + columns[role][i], 0) || 1;
  let x = 0;
  strip.replaceChildren(...ROLES.map((role, n) => {
    const width = STRIP * columns[role][i] / whole;
    x += width;
    return drawn("rect", { x: x - width, width, height: 40, class: `part c${[0, 1, 3, 2, 7, 5][n]}` });
  }));
  now.replaceChildren(facts([["hour", told(hour)], ...ROLES.map(role => [role, `${words(columns[role][i])} nodes`]), ["demand", `${words(columns.rate[i])} requests/s`], ["power", `${words(columns.watts[i] / 1e6)} MW`]]));
}

/** The newest moves until an hour, each figure with its key in the file. */
function showMoves({ moves, file, policy, begins_h: begins }, hour, shown) {
  const count = moves.findLastIndex(move => move.at_s / 3600 - begins <= hour + 1e-9) + 1;
  if (shown.dataset.count === String(count)) return;
  shown.dataset.count = count;
  const cell = (i, name) => figure({ value: moves[i][name], file, key: `days.${policy}.moves.${i}.${name}` });
  const rows = Array.from({ length: Math.min(count, LATEST) }, (_, back) => count - 1 - back).map(i => {
    const { at_s: at, pool, holder, until_s: until, why } = moves[i];
    return [told(at / 3600 - begins), pool, holder, cell(i, "had"), cell(i, "nodes"), until === null ? "" : told(until / 3600 - begins), why];
  });
  shown.replaceChildren(rows.length ? table(["at", "pool", "holder", "nodes before", "nodes after", "until", "why"], rows, `The newest of ${count} moves until then`) : element("p", {}, "No move yet."));
}
