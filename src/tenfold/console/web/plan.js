// Plans: what each needs, with ranges, a map of its layout, and the planner's answers for other machines, days and prices.
import { bars, picture } from "./drawing.js";
import { button, element, empty, facts, fileLink, section, shown, table, words } from "./figures.js";
import { drawn } from "./marks.js";

const STEPS = 100;  // of a slider on each side of the plan's value
const WAIT_MS = 200;  // from the last move of a slider to the question
const [CELL, MOST] = [34, 16];  // of the layout map: the size of a GPU, and the most GPUs in a row or column
const COMPARED = ["GPUs", "days by the clock", "share of peak", "rented", "energy", "by location"];
const SLIDERS = { gpus: "GPUs", days: "Days by the clock", rent_usd_per_h: "Rent of a GPU-hour, USD" };

export async function show(main, place, page) {
  if (place.name) return showOne(main, place, page);
  const { plans, heads, empty: command } = await page.load("plan");
  if (command) main.append(empty("There is no plan yet. Make one by", command));
  else main.append(table(["plan", ...heads], plans.map(one => [element("a", { href: page.link("plan", one.name) }, one.name), ...(one.figures ?? [one.failed])]), "Plans, the newest first"));
  page.follow("plan", "", () => page.refresh());
}

async function showOne(main, place, page) {
  const plan = await page.load("plan", place.name);
  const told = element("div", { class: "told" });
  const state = { plan, page, name: place.name, asked: { ...place.params }, number: 0, told, status: element("p", { role: "status", class: "status" }) };
  if (page.live) main.append(section("What if", controls(state), state.status, comparison(state)));
  main.append(told);
  tell(state, null);
  main.append(section("Layout", layoutMap(plan), layoutFacts(plan), losers(plan)), section("Notes", sentences(plan.notes), element("h3", {}, "Assumptions"), sentences(plan.assumed)), element("p", {}, plan.files.flatMap(file => [fileLink(file), " "])));
  if (page.live && Object.keys(state.asked).length) ask(state);
}

/** Shows the sections of the plan, beside the planner's answer if there is one. */
function tell({ plan, told }, answer) {
  told.replaceChildren(chances(plan, answer), ...plan.sections.map((one, i) => section(one.title, both(one, answer?.sections[i]), bySide(one.bars, answer?.sections[i].bars))));
}

function both({ title, facts: own }, other) {
  if (!other) return facts(own.map(({ name, figure }) => [name, figure]));
  return table(["figure", "the plan", "what if"], own.map(({ name, figure }, i) => [name, figure, other.facts[i].figure]), title);
}

const bySide = (own, other) => element("div", { class: "columns" }, own.flatMap((one, i) => [bars(one.title, one.parts), ...(other ? [bars(`${one.title}, what if`, other[i].parts)] : [])]));

function chances(plan, answer) {
  const found = [["the plan", plan.chances], ["what if", answer?.chances ?? []]].flatMap(([who, rows]) => rows.map(one => [`${one.name}: ${who}`, one.limit, one.probability]));
  return found.length ? section("Chances", table(["chance", "limit", "probability"], found, "Chances that the limits are met")) : "";
}

const sentences = list => element("ul", {}, list.map(one => element("li", {}, one)));

/** Sliders and lists. Their values are kept in the address, so that the link shows the same again. */
function controls(state) {
  const { ranges, regions, region, accelerators } = state.plan.offered;
  const sliders = Object.entries(SLIDERS).map(([key, label]) => slider(state, key, label, ranges[key]));
  const places = choice(state, "region", "Place", regions.map(one => [one.key, one.name]), region);
  const parts = choice(state, "accelerator", "Accelerator", accelerators.map(one => [one, one]), accelerators[0]);
  const again = button("As planned", () => { state.asked = {}; state.page.go({}, { quiet: true }); state.page.refresh(); });
  const made = element("div", { class: "sliders" }, sliders, places, parts, again);
  // The first question takes the planner longest, and its search is cached: ask it when the pointer or the focus comes near.
  for (const event of ["pointerenter", "focusin"]) made.addEventListener(event, () => planner(state, {}).catch(() => {}), { once: true });
  return made;
}

function slider(state, key, label, [low, own, high]) {
  const at = value => Math.round(value >= own ? STEPS * Math.log(value / own) / Math.log(high / own) : -STEPS * Math.log(value / own) / Math.log(low / own));
  const of = step => step === 0 ? own : own * (step > 0 ? high / own : own / low) ** (step / STEPS);
  const rounded = step => key === "gpus" ? Math.min(high, Math.max(low, Math.round(of(step)))) : of(step);
  const said = state.asked[key] ? Number(state.asked[key]) : own;
  const output = element("output", {}, words(said));
  const input = element("input", { type: "range", min: -STEPS, max: STEPS, step: 1, value: at(said), "aria-label": label, "aria-valuetext": words(said), oninput: () => {
    const value = rounded(Number(input.value));
    output.textContent = words(value);
    input.setAttribute("aria-valuetext", words(value));
    change(state, key, input.value === "0" ? undefined : value);
  } });
  return element("label", {}, element("span", {}, label, " ", output), input);
}

function choice(state, key, label, options, own) {
  const select = element("select", { "aria-label": label, onchange: () => change(state, key, select.value === own ? undefined : select.value) },
    options.map(([value, text]) => element("option", { value, selected: value === (state.asked[key] ?? own) }, text)));
  return element("label", {}, element("span", {}, label), select);
}

/** Records a changed value. Days determine the GPUs and the other way round, so the one that was changed last counts. */
function change(state, key, value) {
  state.asked[key] = value;
  if (value !== undefined && key === "gpus") delete state.asked.days;
  if (value !== undefined && key === "days") delete state.asked.gpus;
  if (value === undefined) delete state.asked[key];
  clearTimeout(state.timer);
  state.timer = setTimeout(() => ask(state), WAIT_MS);
}

const planner = ({ page, name }, asked) => page.ask(`ask/plan/${encodeURIComponent(name)}`, asked);

/** Asks the planner, one question at a time; of the changes made meanwhile only the last is asked next. */
async function ask(state) {
  if (state.asking) { state.again = true; return; }
  state.asking = true;
  state.page.go(state.asked, { quiet: true });
  state.status.textContent = "The planner is at work.";
  const began = performance.now();
  try {
    const answer = Object.keys(state.asked).length ? await planner(state, state.asked) : null;
    tell(state, answer);
    state.status.textContent = answer ? `The planner answered in ${((performance.now() - began) / 1000).toFixed(2)} s.` : "As planned.";
  } catch (error) {
    state.status.textContent = error.message;
  }
  state.asking = false;
  if (state.again) { state.again = false; ask(state); }
}

/** The same training on every accelerator; the planner is asked for one after the other. */
function comparison(state) {
  const body = element("div");
  const compare = button("Compare accelerators", async () => {
    compare.disabled = true;
    const rows = [];
    for (const accelerator of state.plan.offered.accelerators) {
      rows.push([accelerator, ...await compared(state, accelerator)]);
      body.replaceChildren(table(["accelerator", ...COMPARED], rows, "The same training on each accelerator"));
    }
    compare.disabled = false;
  });
  return element("div", {}, element("div", { class: "tools" }, compare), body);
}

async function compared(state, accelerator) {
  try {
    const { sections } = await planner(state, { ...state.asked, accelerator });
    const figures = new Map(sections.flatMap(one => one.facts.map(({ name, figure }) => [name, figure])));
    return COMPARED.map(name => figures.get(name));
  } catch (error) {
    return [error.message, ...COMPARED.slice(1).map(() => "")];
  }
}

/** The numbers from 0 to n - 1; if there are too many, the first ones, null for a gap, and the last. */
const fewOf = n => n <= MOST ? [...Array(n).keys()] : [...Array(MOST - 2).keys(), null, n - 1];

/** The map of one replica: a row for each pipeline stage, a cell for each GPU. */
function layoutMap({ layout, stages }) {
  const [tp, cp, pp, dp] = ["tp", "cp", "pp", "dp"].map(name => layout[name].value);
  const [columns, rows] = [fewOf(tp * cp), fewOf(pp)];
  const [left, top] = [190, 4];
  const svg = drawn("svg", { viewBox: `0 0 ${left + columns.length * CELL} ${top + rows.length * CELL}`, width: left + columns.length * CELL, height: top + rows.length * CELL, role: "img", "aria-label": layout.words.value, class: "map" });
  rows.forEach((stage, y) => {
    svg.append(drawn("text", { x: left - 8, y: top + y * CELL + CELL / 2 + 4, "text-anchor": "end" }, stage === null ? "…" : held(stage, stages)));
    columns.forEach((column, x) => svg.append(...cell(stage, column, { tp, cp, dp }, left + x * CELL, top + y * CELL)));
  });
  const table = [["stage", "layers", "GPUs of a replica"], ...stages.map((own, stage) => [stage, own.map(ends => ends.join("-")).join(" "), tp * cp])];
  return picture(`One replica of ${dp}: ${pp} stages × ${cp} context × ${tp} tensor ranks`, svg, table);
}

function held(stage, stages) {
  const own = stages[stage];
  if (stages.length === 1) return "all layers";
  return own.length === 1 ? `stage ${stage}: layers ${own[0][0]} to ${own[0][1]}` : `rank ${stage}: ${own.length} stages, ${own.reduce((sum, [a, b]) => sum + b - a + 1, 0)} layers`;
}

function cell(stage, column, { tp, cp, dp }, x, y) {
  const middle = { x: x + CELL / 2, y: y + CELL / 2 + 4, "text-anchor": "middle" };
  if (stage === null || column === null) return [drawn("text", middle, "…")];
  const number = (stage * dp * cp + Math.floor(column / tp)) * tp + column % tp;
  return [drawn("rect", { x: x + 1, y: y + 1, width: CELL - 2, height: CELL - 2, rx: 4, class: `part c${stage % 8}` }), drawn("text", { ...middle, class: "on" }, number > 9999 ? "" : String(number))];
}

const layoutFacts = ({ layout: { words: said, ...others } }) => element("div", {}, element("p", {}, shown(said)), facts(Object.entries(others).map(([name, figure]) => [name.replaceAll("_", " "), figure])));

function losers({ others }) {
  return others.length ? table(["layout", "slower by", "because"], others.map(one => [one.layout, one.slower_pct, one.reason]), "The next best layouts") : "";
}
