// Runs: the list, and one run while it trains or afterwards, with others overlaid on request.
import { chart } from "./chart.js";
import { button, element, empty, facts, fileLink, section, table } from "./figures.js";
import { bar, heat } from "./pictures.js";

const MOST_POINTS = 2000;  // of a growing chart, before its data are loaded again in fewer bins
const WAIT_MS = 150;  // from a zoom to the request for the range's data
const PICTURES = [
  { field: "loss", title: "Loss", unit: "nats/token" },
  { field: "tokens_per_s", title: "Speed", unit: "tokens/s" },
  { field: "mfu", title: "MFU", unit: "of the peak" },
  { field: "watts", title: "Power", unit: "W" },
  { field: "learning_rate", title: "Learning rate", unit: "" },
  { field: "grad_norm", title: "Gradient norm", unit: "" },
];
const TITLES = { step: "step", loss: "loss", tokens_per_s: "speed", mfu: "MFU", watts: "power", learning_rate: "learning rate", grad_norm: "gradient norm", tokens: "tokens", bits_per_byte: "validation", seconds: "training time", energy_kwh: "energy" };
const SPENT = { counted_s: "steps that counted", redone_s: "steps done again", starting_s: "starting", saving_s: "saving", evaluating_s: "evaluating", down_s: "down", other_s: "other" };

export async function show(main, place, page) {
  if (!place.name) return showList(main, page);
  const state = { main, page, name: place.name, params: place.params, range: rangeOf(place.params), charts: [] };
  await load(state);
  const parts = ["head", "controls", "loss", "speed", "time", "experts", "events"];
  for (const part of parts) main.append(state[part] = element("div"));
  showControls(state);
  showCharts(state);
  showRest(state);
  page.follow("run", state.name, news => take(state, news));
}

async function showList(main, page) {
  const { runs, empty: command } = await page.load("run");
  if (command) return main.append(empty("There is no run yet. Start one by", command));
  const rows = runs.map(run => [element("a", { href: page.link("run", run.name) }, run.name), run.state, run.step, run.loss, run.tokens_per_s, run.mfu]);
  main.append(table(["run", "state", "step", "loss", "speed", "MFU"], rows, "The runs of this home, with the last step of each"));
}

const rangeOf = ({ from, to }) => ({ from: number(from), to: number(to) });
const number = text => text === undefined || text === "" || Number.isNaN(Number(text)) ? null : Number(text);
const othersOf = ({ with: names }) => (names ?? "").split(",").filter(Boolean).map(decodeURIComponent);

/** Loads the documents of the run and of the overlaid runs for the shown range. */
async function load(state) {
  const { from, to } = state.range;
  const ask = name => state.page.load("run", name, { from: from ?? "", to: to ?? "" });
  const names = othersOf(state.params);
  [state.run, ...state.others] = await Promise.all([state.name, ...names].map(ask));
}

/** Loads and shows the documents again. Calls during a load cause one more load after it. */
async function reload(state) {
  state.again = true;
  if (state.loading) return;
  state.loading = true;
  try {
    while (state.again) {
      state.again = false;
      await load(state);
    }
    showRest(state);
    await update(state);
  } catch (error) {
    state.said.textContent = error.message;
  } finally { state.loading = false; }
}

function showCharts(state) {
  const wide = state.loss, narrow = element("div", { class: "columns" });
  state.speed.append(narrow);
  for (const { field, title, unit } of PICTURES) {
    if (!state.run.fields[field]) continue;
    const host = field === "loss" ? wide : narrow.appendChild(element("div"));
    const made = chart(host, { title, unit, xLabel: "step", series: seriesOf(state, field), tall: field === "loss", onRange: (from, to) => zoom(state, from, to) });
    state.charts.push({ field, made });
    if (state.range.from !== null || state.range.to !== null) made.range(state.range.from, state.range.to);
  }
}

/** The series of a chart: the run, the overlaid runs and, for the loss, its forecast and evaluations. */
function seriesOf({ run, others }, field) {
  const line = (one, i) => ({ label: one.name, x: one.x, values: one.fields[field].mean, low: one.fields[field].low, high: one.fields[field].high, colour: i ? i + 2 : 0, dash: i });
  const series = [run, ...others].filter(one => one.fields[field]).map(line);
  if (field !== "loss") return series;
  const { band, evaluations } = run;
  if (band) series.push({ label: "forecast, 80 %", x: band.x, values: band.median, low: band.low, high: band.high, colour: 1, dash: 1 });
  if (evaluations.x.length) series.push({ label: "validation", x: evaluations.x, values: evaluations.loss, line: false, mark: "square", colour: 2 });
  return series;
}

/** Shows another range of steps: at once in all charts, and then with the data of the range. */
function zoom(state, from, to) {
  state.range = { from, to };
  state.params = { ...state.params, from, to };
  state.page.go(state.params, { quiet: true });
  for (const { made } of state.charts) made.range(from, to);
  clearTimeout(state.timer);
  if (state.page.live) state.timer = setTimeout(() => reload(state), WAIT_MS);
}

/** Shows the present data, one chart per frame, so that the page stays smooth. */
async function update(state) {
  for (const { field, made } of state.charts) {
    await new Promise(requestAnimationFrame);
    made.update({ series: seriesOf(state, field) });
    if (state.range.from !== null || state.range.to !== null) made.range(state.range.from, state.range.to);
  }
}

/** Adds the news of the run. */
function take(state, news) {
  const { run } = state;
  const isStale = news.events || news.replaced !== run.replaced || news.state !== run.state || (news.after !== run.rows && news.rows > run.rows);
  if (isStale || run.x.length > MOST_POINTS) return reload(state);
  run.latest = news.latest;
  if (news.spent) run.spent = news.spent;
  showHead(state);
  if (news.spent) showSpent(state);
  if (news.after !== run.rows) return;
  run.rows = news.rows;
  if (state.range.to !== null) return;
  append(run, news);
  update(state);
}

function append(run, news) {
  run.x.push(...news.x);
  for (const [field, column] of Object.entries(run.fields)) {
    const fresh = news.fields[field] ?? { mean: news.x.map(() => null) };
    for (const [part, values] of Object.entries(column)) values.push(...(fresh[part] ?? fresh.mean));
  }
}

function showHead(state) {
  const { run } = state;
  const pairs = (found, titles) => Object.entries(found).map(([field, figure]) => [titles[field] ?? field, figure]);
  const more = [["planned", run.planned_steps], ["loss forecast at the end (80 %)", run.forecast], ["goodput", run.goodput]].filter(([, value]) => value);
  const shown = [facts([["state", run.state], ...pairs(run.latest, TITLES), ...more])];
  if (Object.keys(run.outcome).length) shown.push(section("Result", facts(pairs(run.outcome, { ...TITLES, loss: "validation loss", bits_per_byte: "validation, by byte" }))));
  state.head.replaceChildren(...shown);
}

/** Shows everything except the line charts. */
function showRest(state) {
  const { run } = state;
  showHead(state);
  showSpent(state);
  showExperts(state);
  const faults = run.faults.map(one => [one.step ?? fileLink(one.file), one.what, one.done]);
  const logs = Object.entries(run.log).map(([name, lines]) => element("details", {}, element("summary", {}, `The last ${lines.length} lines of ${name}`), element("pre", { tabindex: 0, class: "wide" }, lines.join("\n"))));
  state.events.replaceChildren(
    section("Faults, and what was done", faults.length ? table(["step", "what", "what was done"], faults) : element("p", {}, "None is recorded.")),
    section("Log", ...logs),
    section("Files", element("p", {}, ...run.files.flatMap(file => [fileLink(file), " "]))));
  state.stop?.toggleAttribute("disabled", run.state !== "training");
  state.resume?.toggleAttribute("disabled", run.state === "training" || run.state === "finished");
}

function showSpent(state) {
  const parts = Object.entries(SPENT).filter(([field]) => state.run.spent[field]?.value > 0).map(([field, name]) => [name, state.run.spent[field].value]);
  const box = element("div");
  if (parts.length) bar(box, { title: "Where the time went", unit: "s", parts });
  state.time.replaceChildren(box);
}

function showExperts(state) {
  const { experts } = state.run;
  if (!experts) return state.experts.replaceChildren();
  const box = element("div");
  const layer = Math.min(state.layer ?? 0, experts.loads.length - 1);
  const choose = element("select", { "aria-label": "Layer", onchange: event => { state.layer = Number(event.target.value); showExperts(state); } },
    experts.loads.map((_, i) => element("option", { value: i, selected: i === layer }, `layer ${i}`)));
  heat(box, { title: `Load of the experts of layer ${layer}`, xLabel: "step", x: experts.x, rows: experts.loads[layer] });
  state.experts.replaceChildren(element("div", { class: "tools" }, choose), box);
}

/** The buttons to stop and resume the run, and to overlay other runs. */
function showControls(state) {
  const { page, name } = state;
  const said = state.said = element("span", { role: "status" });
  const act = what => async () => {
    try { said.textContent = (await page.act(`runs/${what}/${name.split("/").map(encodeURIComponent).join("/")}`)).done; } catch (error) { said.textContent = error.message; }
  };
  const tools = element("div", { class: "tools" });
  if (page.live) tools.append(state.stop = button("Stop", act("stop")), state.resume = button("Resume", act("resume")));
  const others = othersOf(state.params);
  const set = names => page.go({ ...state.params, with: names.map(encodeURIComponent).join(",") });
  tools.append(button("Overlay another run", async event => event.target.replaceWith(await choice(state, others, set))));
  tools.append(...others.map(other => button(`Remove ${other}`, () => set(others.filter(one => one !== other)))), said);
  state.controls.append(tools);
}

async function choice({ page, name }, others, set) {
  const { runs } = await page.load("run");
  const names = runs.map(run => run.name).filter(one => one !== name && !others.includes(one));
  return element("select", { "aria-label": "Run to overlay", onchange: event => set([...others, event.target.value]) },
    element("option", { value: "" }, names.length ? "Choose a run" : "There is no other run"), names.map(one => element("option", { value: one }, one)));
}
