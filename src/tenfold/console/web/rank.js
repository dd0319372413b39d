// Rankers: the results of each, compared with baselines that need no model.
import { element, empty, facts, fileLink, section, table } from "./figures.js";

export async function show(main, place, page) {
  if (place.name) return showOne(main, await page.load("rank", place.name));
  const { rankers, empty: command } = await page.load("rank");
  if (command) main.append(empty("No ranker was evaluated yet:", command));
  else main.append(table(["ranker", "hit rate at 10", "above popularity (95 %)"], rankers.map(one => [element("a", { href: page.link("rank", one.name) }, one.name), one.hit_rate_10, one.above_popularity]), "Rankers"));
  page.follow("rank", "", () => page.refresh());
}

const read = name => name.replaceAll("_", " ");

function showOne(main, { found, files }) {
  for (const { title, counts, measures, scores, above } of found) {
    const rows = Object.entries(scores).map(([name, of]) => [read(name), ...measures.map(measure => of[measure])]);
    const compared = Object.keys(Object.values(above)[0] ?? {});
    const differences = Object.entries(above).map(([name, of]) => [read(name), ...compared.map(measure => of[measure])]);
    main.append(section(title, facts(Object.entries(counts)), table(["scorer", ...measures.map(read)], rows, `${title}: measures over the whole catalogue`),
      table(["model minus", ...compared.map(read)], differences, `${title}: differences on the same users, with 95 % intervals`)));
  }
  main.append(section("Files", element("ul", {}, files.map(file => element("li", {}, fileLink(file))))));
}
