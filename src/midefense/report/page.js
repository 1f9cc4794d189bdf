// The page works without this file, except for what it adds: search, filters, sorting, a choice of columns, two setups
// side by side, and configurations. Everything it shows comes from #data and is placed as text, never as markup.

const NARROW = matchMedia("(max-width: 720px)");
const NOT_MEASURED = "not measured in this row"; // rows.py says so of a metric that a result does not have
const FEW = 8; // setups: above a longer table nothing is explained until it is asked for

/** [key, value, key, value] as places of texts -> Map. */
function pairs(places) {
  const found = new Map();
  for (let i = 0; i < places.length; i += 2) found.set(at(places[i]), at(places[i + 1]));
  return found;
}

const SETUPS = DATA.setups.map(setup => {
  const facts = pairs(setup.facts), configuration = pairs(setup.configuration);
  const keys = new Map([...configuration, ...facts, ["protocol", setup.protocol]]);
  if (setup.note) keys.set("note", setup.note);
  if (setup.stopped) keys.set("stopped", setup.stopped);
  const entries = [...keys].map(([key, value]) => `${key}=${value}`.toLowerCase());
  const commands = setup.seeds.map(seed => seed.command.toLowerCase());
  return { ...setup, facts, configuration, keys, entries, text: [...entries, ...commands].join("\n") };
});
const title = setup => ["defense", "attack", "architecture", "dataset", "prior"]
  .map(name => setup.facts.get(name)).concat(setup.note).filter(Boolean).join(" · ");

// Which setups are shown

const state = { words: [], facets: new Map(), picked: [] };

function matches(setup) {
  const said = word => word.includes("=") ? setup.entries.some(entry => entry.endsWith(word)) : setup.text.includes(word);
  const wanted = ([key, values]) => !values.size || values.has(setup.keys.get(key) ?? "");
  return state.words.every(said) && [...state.facets].every(wanted);
}

function filter() {
  const shown = SETUPS.map(matches);
  for (const element of document.querySelectorAll("[data-setup]")) toggle(element, !shown[element.dataset.setup]);
  for (const part of document.querySelectorAll(".part, .protocol"))
    toggle(part, !part.querySelector("[data-setup]:not([hidden])"));
  const count = shown.filter(Boolean).length, all = count === SETUPS.length;
  const noun = SETUPS.length === 1 ? "setup" : "setups";
  document.getElementById("shown").textContent = all ? `${count} ${noun}` : `${count} of ${SETUPS.length} ${noun}`;
  document.getElementById("reset").hidden = !state.words.length && ![...state.facets.values()].some(v => v.size);
  for (const facet of document.querySelectorAll(".facet")) {
    const ticked = state.facets.get(facet.dataset.key).size;
    facet.querySelector("summary").textContent = facet.dataset.key + (ticked ? ` (${ticked})` : "");
    facet.classList.toggle("active", Boolean(ticked));
  }
}

/** SVG elements have no property `hidden`. */
const toggle = (element, hidden) => element.toggleAttribute("hidden", hidden);

/** Values of a key over all setups, with how many setups have each. */
function valuesOf(key) {
  const counts = new Map();
  for (const setup of SETUPS) {
    const value = setup.keys.get(key) ?? "";
    counts.set(value, (counts.get(value) ?? 0) + 1);
  }
  return new Map([...counts].sort(([a], [b]) => a.localeCompare(b, "en", { numeric: true })));
}

function addFacet(key, open = false) {
  if (state.facets.has(key)) return;
  const wanted = new Set();
  state.facets.set(key, wanted);
  const choose = (value, box) => { box.checked ? wanted.add(value) : wanted.delete(value); filter(); };
  const choices = [...valuesOf(key)].map(([value, count]) => {
    const box = make("input", { type: "checkbox" });
    box.addEventListener("change", () => choose(value, box));
    return make("label", {}, box, make("span", {}, value || "(none)"), make("small", {}, String(count)));
  });
  const list = make("div", { class: "choices" }, ...choices);
  document.getElementById("facets").append(
    make("details", { class: "menu facet", "data-key": key, open }, make("summary", {}, key), list));
}

function setUpFilters() {
  const keys = [...new Set(SETUPS.flatMap(setup => [...setup.keys.keys()]))];
  const varying = keys.filter(key => valuesOf(key).size > 1);
  const first = ["defense", "attack", "architecture", "dataset", "prior"].filter(key => varying.includes(key));
  for (const key of first) addFacet(key);
  const rest = varying.filter(key => !first.includes(key)).sort();
  const more = document.getElementById("more");
  more.append(make("option", { value: "" }, "Filter by…"), ...rest.map(key => make("option", { value: key }, key)));
  more.hidden = !rest.length;
  more.addEventListener("change", () => { if (more.value) addFacet(more.value, true); more.value = ""; });
  const words = document.getElementById("words");
  words.addEventListener("input", () => {
    state.words = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    filter();
  });
  document.getElementById("reset").addEventListener("click", () => {
    words.value = "";
    state.words = [];
    for (const wanted of state.facets.values()) wanted.clear();
    for (const box of document.querySelectorAll(".facet input")) box.checked = false;
    filter();
  });
}

// Sorting

function compare(a, b) {
  const difference = Number(a) - Number(b);
  return Number.isNaN(difference) ? a.localeCompare(b, "en", { numeric: true }) : difference;
}

/** Sort a table by the column of `head`; what is n/a comes last either way. */
function sort(head, falling) {
  const place = head.cellIndex, body = head.closest("table").tBodies[0];
  const value = row => row.cells[place].dataset.value;
  const rows = Array.from(body.rows).sort((a, b) => {
    const p = value(a), q = value(b);
    return (p === "") - (q === "") || (falling ? compare(q, p) : compare(p, q));
  });
  for (const other of head.parentNode.cells) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", falling ? "descending" : "ascending");
  body.append(...rows);
}

const TABLES = [...document.querySelectorAll(".results")];
const headsOf = table => [...table.tHead.rows[0].cells];
const headTitle = head => head.querySelector("button").firstChild.textContent;

function setUpSorting() {
  for (const table of TABLES)
    table.tHead.addEventListener("click", event => {
      const head = event.target.closest("button")?.closest("th");
      if (head) sort(head, head.getAttribute("aria-sort") === "ascending");
    });
  document.getElementById("sort").addEventListener("change", event => {
    const [key, way] = event.target.value.split("\n");
    for (const table of TABLES) {
      const head = headsOf(table).find(one => one.dataset.key === key);
      if (head) sort(head, way === "falling");
    }
  });
}

/** The select offers the columns that are shown: on a narrow screen, or with many tables, heads are far away. */
function offerSorts() {
  const titles = new Map(TABLES.flatMap(headsOf).filter(head => chosen.has(head.dataset.key))
    .map(head => [head.dataset.key, headTitle(head)]));
  const options = [...titles].flatMap(([key, name]) => [
    make("option", { value: `${key}\nrising` }, `${name} ↑`),
    make("option", { value: `${key}\nfalling` }, `${name} ↓`)]);
  document.getElementById("sort").replaceChildren(make("option", { value: "" }, "Sort by…"), ...options);
}

// Columns

const NAMES = ["defense", "attack", "architecture", "dataset", "prior", "public", "access"];
/** What else results say of themselves: it can be shown as a column too. */
const FACTS = [...new Set(SETUPS.flatMap(setup => [...setup.facts.keys()]))].filter(key => !NAMES.includes(key)).sort();
const chosen = new Set(TABLES.flatMap(headsOf).filter(head => !head.hidden).map(head => head.dataset.key));

/** On a narrow screen the first column speaks for all names, and numbers come right after it. */
const visible = key => key === "defense" || (chosen.has(key) && !(NARROW.matches && [...NAMES, "seeds"].includes(key)));

function layOut() {
  for (const table of TABLES) {
    addColumns(table);
    const shown = headsOf(table).map(head => visible(head.dataset.key));
    for (const row of [...table.tHead.rows, ...table.tBodies[0].rows])
      [...row.cells].forEach((cell, place) => { cell.hidden = !shown[place]; });
    const names = shown.findIndex((_, place) => headsOf(table)[place].dataset.key === "seeds") + 1;
    for (const row of table.tFoot?.rows ?? []) {
      row.cells[0].colSpan = shown.slice(0, names).filter(Boolean).length;
      [...row.cells].slice(1).forEach((cell, place) => { cell.hidden = !shown[names + place]; });
    }
  }
  offerSorts();
}

/** Cells of chosen columns that the table does not have yet, like those of page.py: further metrics with their
    anchors, and facts, which have none. */
function addColumns(table) {
  const { columns, anchors } = DATA.protocols[table.closest(".protocol").dataset.protocol];
  const there = new Set(headsOf(table).map(head => head.dataset.key));
  const missing = key => chosen.has(key) && !there.has(key);
  columns.forEach(([key, name, leaks, meaning], place) => {
    if (missing(key)) addColumn(table, key, name, leaks, meaning,
      setup => numberCell(setup.numbers[place]), line => anchors[line][1][place]);
  });
  for (const key of FACTS.filter(missing))
    addColumn(table, key, key, "", "", setup => factCell(setup.facts.get(key) ?? ""), () => ["", ""]);
}

function addColumn(table, key, name, leaks, meaning, cellOf, anchorOf) {
  const hint = meaning ? `${key}: ${meaning}` : key, style = "number";
  const button = make("button", { type: "button", title: hint }, name, make("span", { class: "arrow" }));
  const small = leaks ? make("small", {}, leaks) : null;
  table.tHead.rows[0].append(make("th", { scope: "col", class: style, "aria-sort": "none", "data-key": key }, button, small));
  for (const row of table.tBodies[0].rows) row.append(cellOf(SETUPS[row.dataset.setup]));
  [...(table.tFoot?.rows ?? [])].forEach((row, line) => {
    const [text, spread] = anchorOf(line);
    row.append(make("td", { class: style }, text, spread ? make("span", { class: "std" }, ` ${spread}`) : null));
  });
}

const factCell = value => make("td", { class: "number fact", "data-value": value }, value);

function numberCell([text, spread, bounds, remark, value]) {
  const hint = at(remark) || undefined;
  if (value === null)
    return make("td", { class: "number", "data-value": "" }, make("span", { class: "absent", tabindex: 0, title: hint }, text));
  return make("td", { class: "number", "data-value": value, title: hint }, ...numberParts(text, spread, bounds));
}

const numberParts = (text, spread, bounds) => [
  text, spread ? make("span", { class: "std" }, ` ${spread}`) : null, bounds ? make("small", {}, bounds) : null];

function setUpColumns() {
  const titles = new Map(TABLES.flatMap(headsOf).map(head => [head.dataset.key, headTitle(head)]));
  for (const { columns } of Object.values(DATA.protocols)) for (const [key, name] of columns) titles.set(key, titles.get(key) ?? name);
  for (const key of FACTS) titles.set(key, key);
  titles.delete("defense");
  const boxes = [...titles].map(([key, name]) => {
    const box = make("input", { type: "checkbox", value: key });
    box.checked = chosen.has(key);
    box.addEventListener("change", () => { box.checked ? chosen.add(key) : chosen.delete(key); layOut(); });
    return make("label", {}, box, make("span", {}, name));
  });
  document.querySelector("#columns .choices").append(...boxes);
  NARROW.addEventListener("change", layOut);
  layOut();
}

// Configurations

const table = (heads, rows) => make("div", { class: "scroll metrics", tabindex: 0 }, make("table", {},
  make("thead", {}, make("tr", {}, ...heads.map(head => make("th", { scope: "col" }, head)))),
  make("tbody", {}, ...rows)));
const list = map => make("dl", {}, ...[...map].map(([key, value]) =>
  make("div", {}, make("dt", {}, key), make("dd", {}, make("code", {}, value)))));
const short = value => value === null ? "n/a" : String(value);

/** "name: number; ..." of a metric's classes. */
function byClass([names, numbers]) {
  if (names === undefined) return "";
  const values = numbers.split(" ");
  return at(names).split("\n").map((name, place) => `${name}: ${values[place]}`).join("; ");
}

/** All numbers of a setup: over its seeds, of each seed, of each class. */
function metricTable(setup) {
  const rows = DATA.protocols[setup.protocol].columns.map(([key], place) => {
    const [text, spread, bounds, remark, , images] = setup.numbers[place];
    const cells = [[`${text} ${spread}`.trim(), "number"], ...setup.seeds.map(seed => [short(seed.values[place]), "number"]),
      [bounds, "number"], [images || "", "number"], [byClass(setup.classes[place]), "long"], [at(remark), "long"]];
    const measured = text !== "n/a" || at(remark) !== NOT_MEASURED;
    return measured ? make("tr", {}, make("th", { scope: "row" }, key),
      ...cells.map(([said, style]) => make("td", { class: style }, String(said)))) : null;
  });
  const one = setup.seeds.length === 1 ? ["value"] : setup.seeds.map(seed => seed.name);
  return table(["metric", "mean ± deviation", ...one, "95% interval", "n", "per class", "remark"], rows.filter(Boolean));
}

function seedArticle(seed) {
  const own = pairs(seed.own);
  const links = seed.files.map(place => make("a", { href: `${seed.base}/${encodeURIComponent(at(place))}` }, at(place)));
  const files = links.length ? make("p", { class: "files" }, "Files:", ...links.flatMap(link => [" ", link])) : null;
  const again = seed.command ? make("p", {}, "Run it again: ", make("code", { class: "command" }, seed.command)) : null;
  const differs = own.size ? [make("h5", {}, "Differs from the configuration above"), list(own)] : [];
  const missing = seed.missing.map(reason => make("p", { class: "absent" }, reason));
  return make("article", {}, make("h4", {}, seed.name), again, files, list(pairs(seed.facts)), ...missing, ...differs);
}

function fill(details) {
  if (!details.open || details.children.length > 1) return;
  const setup = SETUPS[details.dataset.setup];
  const configuration = setup.configuration.size
    ? make("details", { class: "file" }, make("summary", {}, `Configuration, ${setup.configuration.size} keys`), list(setup.configuration))
    : null;
  details.append(make("article", {}, list(setup.facts), metricTable(setup), configuration), ...setup.seeds.map(seedArticle));
}

// Two setups side by side

function pick(number) {
  if (state.picked.includes(number)) state.picked = state.picked.filter(one => one !== number);
  else state.picked = [...state.picked, number].slice(-2);
  for (const box of document.querySelectorAll(".pick")) box.checked = state.picked.includes(Number(box.value));
  const bar = document.getElementById("picked");
  bar.hidden = !state.picked.length;
  const names = state.picked.map(one => make("span", { class: "who" }, title(SETUPS[one])));
  const ready = state.picked.length === 2;
  const next = ready
    ? make("button", { type: "button", class: "go", on: ["click", showComparison] }, "Compare")
    : make("span", { class: "hint" }, "tick another to compare");
  bar.replaceChildren(...names, next,
    make("button", { type: "button", on: ["click", () => [...state.picked].forEach(pick)] }, "Clear"));
}

function side(label, left, right, equal) {
  return make("div", { class: "side", "data-equal": equal }, make("span", { class: "key-name" }, label),
    make("span", {}, left), make("span", {}, right));
}

/** Rows for the keys of two maps; those that are equal are marked, and hidden at first. */
function sides(a, b) {
  const keys = [...new Set([...a.keys(), ...b.keys()])].sort();
  return keys.map(key => side(key, a.get(key) ?? "–", b.get(key) ?? "–", a.get(key) === b.get(key)));
}

function numberSides(a, b) {
  const metrics = setup => new Map(DATA.protocols[setup.protocol].columns.map(([key, name], place) => [key, [name, setup.numbers[place]]]));
  const left = metrics(a), right = metrics(b);
  const shown = numbers => numbers ? make("span", {}, ...numberParts(...numbers.slice(0, 3)).filter(Boolean)) : "–";
  return [...new Set([...left.keys(), ...right.keys()])].map(key =>
    side((left.get(key) ?? right.get(key))[0], shown(left.get(key)?.[1]), shown(right.get(key)?.[1]), false));
}

function showComparison() {
  const [a, b] = state.picked.map(number => SETUPS[number]), dialog = document.getElementById("compare");
  const head = make("div", { class: "side heads" }, make("span"), make("b", {}, title(a)), make("b", {}, title(b)));
  const apart = a.protocol === b.protocol ? null
    : make("p", { class: "notice warning" }, "These two follow different protocols: their numbers are not to be ranked.");
  const settings = [...sides(a.facts, b.facts), ...sides(a.configuration, b.configuration)];
  const equal = settings.filter(row => row.dataset.equal !== undefined).length;
  const box = make("input", { type: "checkbox", id: "equal" });
  const body = make("div", { class: "sides differing" }, head, make("h3", {}, "Settings"),
    make("label", { class: "lead" }, box, ` show the ${equal} that are equal too`), ...settings,
    make("h3", {}, "Numbers"), ...numberSides(a, b), ...pictureSides());
  box.addEventListener("change", () => body.classList.toggle("differing", !box.checked));
  const missing = [a, b].flatMap(setup => setup.seeds[0].missing).map(reason => make("p", { class: "absent" }, reason));
  const close = make("button", { type: "button", class: "close", "aria-label": "Close", on: ["click", () => dialog.close()] }, "×");
  dialog.replaceChildren(close, make("h2", {}, "Side by side"), ...(apart ? [apart] : []), ...missing, body);
  dialog.showModal();
  dialog.scrollTop = 0;
}

function pictureSides() {
  const strips = state.picked.map(number => document.querySelector(`.gallery [data-setup="${number}"]`)).filter(Boolean);
  const copies = strips.map(strip => strip.cloneNode(true));
  for (const copy of copies) { copy.removeAttribute("data-setup"); copy.hidden = false; }
  return copies.length ? [make("h3", {}, "Reconstructions"), make("div", { class: "gallery" }, ...copies)] : [];
}

// Start

if (SETUPS.length) {
  document.querySelector(".tools").hidden = false;
  document.querySelector(".tools").addEventListener("submit", event => event.preventDefault());
  setUpFilters();
  setUpSorting();
  setUpColumns();
  filter();
  for (const box of document.querySelectorAll(".pick")) {
    box.checked = false; // browsers remember ticks over a reload
    box.addEventListener("change", () => pick(Number(box.value)));
  }
  for (const details of document.querySelectorAll("details.setup")) details.addEventListener("toggle", () => fill(details));
  document.addEventListener("click", event => { // a menu closes when one clicks elsewhere
    for (const menu of document.querySelectorAll(".menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  });
  document.querySelector(".read").open = !NARROW.matches && SETUPS.length <= FEW;
}
