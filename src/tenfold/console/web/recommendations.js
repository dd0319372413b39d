// Recommendations explained by the user's history, and experiments between two rankers, for operators.
import { button, element, empty, section, table, words } from "./figures.js";

const REASONS = 3;  // shown for each item

export async function show(main, place, page) {
  const { stores, rankers, empty: command } = await page.load("recommendations");
  if (command) return main.append(empty("No events are kept in this home. Serve a ranker that keeps them:", command));
  const experiments = stores.flatMap(store => Object.entries(store.experiments).flatMap(([kind, some]) => some.map(one => experimentOf(kind, one))));
  if (experiments.length) main.append(section("Experiments", table(["kind", "models", "wins", "ties", "share of the second (95 %)", "p"], experiments, "Experiments between two rankers, with always-valid tests")));
  main.append(section("Explained", rankers.length ? explaining(stores, rankers, page) : empty("No ranker of this home can explain:", "tenfold rank train")));
}

function experimentOf(kind, { models, wins, ties, interval: [low, high], p }) {
  const count = wins[0] + wins[1];
  return [kind, models.join(" and "), wins.join(" and "), ties, `${words(count ? wins[1] / count : .5)} [${words(low)} to ${words(high)}]`, p];
}

const options = values => values.map(value => element("option", { value }, value));

function explaining(stores, rankers, page) {
  const ranker = element("select", { "aria-label": "Ranker" }, options(rankers));
  const store = element("select", { "aria-label": "Event store" }, options(stores.map(one => one.file)));
  const user = element("input", { "aria-label": "User", placeholder: "name of a user", autocomplete: "off" });
  const found = element("div", { role: "status" });
  const ask = async (body, of = store.value) => {
    found.textContent = "Asking the ranker…";
    try {
      found.replaceChildren(...explained(await page.act("recommendations/explain", { ranker: ranker.value, store: of, ...body })));
    } catch (error) {
      found.textContent = error.message;
    }
  };
  const form = element("form", { onsubmit: event => { event.preventDefault(); ask({ user: user.value }); } }, ranker, " ", store, " ", user, " ", element("button", {}, "Explain"));
  const lists = stores.flatMap(({ file, lists: some }) => some.map(one => [new Date(one.created * 1000).toLocaleString(), one.user, one.model, one.items.slice(0, 5).join(", "), button("Explain", () => ask({ list: one.id }, file), { "aria-label": `Explain the list ${one.id}` })]));
  return element("div", {}, form, found, lists.length ? table(["shown", "user", "by", "items", ""], lists, "The newest lists") : null);
}

function explained({ history, known, items }) {
  const said = `${history.length} items of history, of which the ranker knows ${known}; the newest: ${history.slice(-10).reverse().map(one => one.item).join(", ") || "none"}.`;
  const why = reasons => reasons.slice(0, REASONS).map(({ item, effect }) => `${item} (${effect > 0 ? "+" : ""}${words(effect)})`).join(", ") || "its popularity, since there is no history";
  return [element("p", {}, said), table(["recommended", "score", "because of (effect on the score, in logits)"], items.map(one => [one.item, one.score, why(one.reasons)]), "Recommendations, explained by the history")];
}
