// Browses every result of a store. Texts stand in DATA.texts and are referred to by their places; a column is one value
// where all results have the same, else a list with one value a result. Everything is placed as text, never as markup.

const PAGE = 50; // lines that are laid out at first, and at every further wish
const MOST_VALUES = 300; // of a key that is offered as a filter; others are found by key=value in the search
const NAMES = ["defense", "attack", "architecture", "dataset", "prior", "public", "access"];
const byId = id => document.getElementById(id);
const valueOf = (column, row) => Array.isArray(column) ? column[row] : column;

const COLUMNS = new Map(DATA.keys);
const METRICS = new Map(DATA.metrics.map(([key, title, unit, leaks, meaning], place) =>
  [key, { key, title, unit, leaks, meaning, numbers: DATA.numbers[place] }]));
const LEADING = [...METRICS.values()].slice(0, DATA.leading);
const PROTOCOLS = new Map(DATA.protocols.map(protocol => [protocol.name, protocol]));
const PLACES = new Map(DATA.texts.map((text, place) => [text, place]));
const LOWER = DATA.texts.map(text => text.toLowerCase());
const ORDER = new Intl.Collator("en", { numeric: true }).compare;
const ROWS = Array.from({ length: DATA.count }, (_, row) => row);
const NAMED = ROWS.map(row => at(valueOf(DATA.names, row)).split("@").at(-1) || `result-${row}`);
const BY_NAME = new Map(NAMED.map((name, row) => [name, row]));
const SETUPS = grouped(ROWS);
const VARYING = new Map([...COLUMNS].filter(([, column]) => Array.isArray(column)));
const SHOWN_NAMES = NAMES.filter(name => name === "defense" || name === "attack" || VARYING.has(name));

const state = { words: "", facets: new Map(), sort: "", falling: false, apart: false, columns: [], pair: [], most: PAGE };

/** What a result says under a key; "" where it says nothing. */
const said = (key, row) => COLUMNS.has(key) ? at(valueOf(COLUMNS.get(key), row)) : "";

/** What several results say under a key, each text once. */
const saidBy = (key, rows) => [...new Set(rows.map(row => said(key, row)))].filter(Boolean).join(", ");

function grouped(rows) {
  const groups = new Map();
  for (const row of rows) {
    const setup = valueOf(DATA.setups, row);
    if (groups.has(setup)) groups.get(setup).push(row);
    else groups.set(setup, [row]);
  }
  return groups;
}

// Numbers, as numbers.py shows them

const MINUTES = 600, HOURS = 7200; // seconds from which on a duration reads in minutes, and in hours

/** A number with so many digits after its point. Python rounds a tie to the even digit, toFixed does not: a double is
    exactly between two such numbers only where it is a whole number of halves, quarters ... of few enough bits. */
function fixed(value, digits) {
  const scale = 10 ** digits, steps = Math.abs(value) * scale;
  const tie = steps % 1 === 0.5 && Number.isInteger(value * 2 ** (digits + 1));
  return tie ? (Math.sign(value) * 2 * Math.round(steps / 2) / scale).toFixed(digits) : value.toFixed(digits);
}

/** A number rounded to so many significant digits. */
function significant(value, digits) {
  if (value === 0) return 0;
  const after = digits - 1 - Math.floor(Math.log10(Math.abs(value)));
  if (after >= 0) return after > 100 ? value : Number(fixed(value, after));
  const step = 10 ** -after;
  return Number(fixed(value / step, 0)) * step;
}

const commas = text => text.replace(/\B(?=(\d{3})+(?!\d))/g, ",");
const whole = value => commas(fixed(value, 0));

const clock = seconds => seconds >= HOURS ? [3600, "h"] : seconds >= MINUTES ? [60, "min"] : [1, "s"];

/** Six significant digits, with an exponent where the number is very small. */
function plain(value) {
  const rounded = significant(value, 6);
  return rounded !== 0 && Math.abs(rounded) < 1e-4 ? rounded.toExponential().replace(/e-(\d)$/, "e-0$1") : String(rounded);
}

function short(value, digits, full) {
  const rounded = significant(value, digits), size = Math.abs(rounded);
  if (size >= full) return size >= 1e6 ? `${commas(plain(rounded / 1e6))}M` : `${plain(rounded / 1e3)}k`;
  return size >= 10 ** digits ? whole(value) : plain(rounded);
}

function show(value, unit) {
  if (!Number.isFinite(value)) return "n/a";
  if (unit === "percent") return `${fixed(100 * value, 1)}%`;
  if (unit === "relative") return fixed(value, 2);
  if (unit === "count") return Math.abs(value) >= 1e6 ? short(value, 3, 1e6) : whole(value);
  if (unit !== "seconds") return short(value, 3, 1e4);
  const [size, word] = clock(value), amount = value / size;
  return amount >= 100 ? `${whole(amount)} ${word}` : `${fixed(amount, 1)} ${word}`;
}

function showSpread(spread, unit, mean) {
  if (!(spread > 0)) return "";
  if (unit === "percent") return `±${fixed(100 * spread, 1)}`;
  if (unit === "relative") return `±${fixed(spread, 2)}`;
  if (unit === "number") return `±${short(spread, 2, 1000)}`;
  if (unit === "seconds") spread /= clock(mean)[0];
  else if (Math.abs(mean) >= 1e6) return `±${short(spread, 2, 1000)}`;
  return spread < 10 ? `±${plain(significant(spread, 2))}` : `±${whole(spread)}`;
}

/** How many standard errors the 95 % interval of a mean reaches. */
const student = freedom => DATA.student[Math.min(freedom, DATA.student.length + 1) - 1] ?? 1.96;

/** A metric over results: mean, half its 95 % interval over them (NaN of one), how many have it, and why others do not. */
function over(rows, metric) {
  const { value, low, high, reason } = metric.numbers;
  const values = rows.map(row => valueOf(value, row)).filter(one => one !== null);
  const count = values.length, mean = values.reduce((sum, one) => sum + one, 0) / count;
  const squares = values.reduce((sum, one) => sum + (one - mean) ** 2, 0);
  const alike = values.every(one => one === values[0]); // their sum may still be off by a last bit
  const half = alike ? NaN : student(count - 1) * Math.sqrt(squares / (count - 1) / count);
  const single = rows.length === 1 && count === 1;
  const bounds = single ? [valueOf(low, rows[0]), valueOf(high, rows[0])] : [null, null];
  const reasons = [...new Set(rows.map(row => at(valueOf(reason, row))))].filter(Boolean).join("; ");
  return { mean: count ? mean : NaN, half, count, total: rows.length, bounds, reason: reasons || (count ? "" : "not measured") };
}

/** Number, spread and interval of a metric over results, as texts. */
function told(rows, metric) {
  const found = over(rows, metric), { mean, half, count, total, bounds: [low, high] } = found;
  const partly = count && count < total ? ` (${count}/${total})` : "";
  const bounds = low === null || high === null ? "" : `${show(low, metric.unit)} to ${show(high, metric.unit)}`;
  return { ...found, text: show(mean, metric.unit) + partly, spread: showSpread(half, metric.unit, mean), bounds };
}

// Which results are shown

/** By place of a text, whether the word is in it. */
const holding = word => LOWER.map(text => text.includes(word));

/** By result, whether it has the word: `value` anywhere, or `key=value` where the key ends so and the value is whole. */
function having(word) {
  const [left, ...right] = word.split("="), exact = right.join("=");
  const fits = right.length ? LOWER.map(text => text === exact) : holding(word);
  const found = new Uint8Array(DATA.count);
  for (const [key, column] of COLUMNS) {
    if (right.length && !key.toLowerCase().endsWith(left)) continue;
    if (!Array.isArray(column)) { if (fits[column]) return found.fill(1); }
    else for (let row = 0; row < column.length; row++) if (fits[column[row]]) found[row] = 1;
  }
  return found;
}

/** How many of the reader's wishes each result misses, and which filter was the last that it missed. */
function missed() {
  const misses = new Uint16Array(DATA.count), which = new Int16Array(DATA.count).fill(-1);
  [...state.facets].forEach(([key, wanted], facet) => {
    if (!wanted.size) return;
    const places = new Set([...wanted].map(text => PLACES.get(text) ?? -1)), column = COLUMNS.get(key) ?? 0;
    for (let row = 0; row < DATA.count; row++)
      if (!places.has(valueOf(column, row))) { misses[row] += 1; which[row] = facet; }
  });
  for (const word of state.words.toLowerCase().split(/\s+/).filter(Boolean)) {
    const found = having(word);
    for (let row = 0; row < DATA.count; row++) if (!found[row]) misses[row] += 2; // no filter's own doing
  }
  return { misses, which };
}

/** By place of a text, how many results have it under a key that fit all other wishes. */
function counted(key, facet, { misses, which }) {
  const counts = new Map(), column = COLUMNS.get(key) ?? 0;
  for (let row = 0; row < DATA.count; row++) {
    if (misses[row] > 1 || (misses[row] === 1 && which[row] !== facet)) continue;
    const place = valueOf(column, row);
    counts.set(place, (counts.get(place) ?? 0) + 1);
  }
  return counts;
}

/** Lines of the tables: results, or setups with those of their results that are shown; sorted as wished. */
function lines(rows) {
  const found = state.apart ? rows.map(row => [row]) : [...grouped(rows).values()];
  if (!state.sort) return found;
  const metric = METRICS.get(state.sort), way = state.falling ? -1 : 1;
  const value = metric ? line => over(line, metric).mean : state.sort === "seeds" ? line => line.length : line => saidBy(state.sort, line);
  const absent = one => one === "" || Number.isNaN(one);
  const order = metric || state.sort === "seeds" ? (a, b) => a - b : ORDER;
  return found.map(line => [value(line), line])
    .sort(([a], [b]) => absent(a) - absent(b) || (absent(a) ? 0 : way * order(a, b))).map(([, line]) => line);
}

// Tables, one a protocol

const lineName = line => state.apart ? NAMED[line[0]] : `${NAMED[SETUPS.get(valueOf(DATA.setups, line[0]))[0]]}*`;
const title = rows => ["defense", "attack", "architecture", "dataset", "prior", "differs by"]
  .map(key => said(key, rows[0])).filter(Boolean).join(" · ");

function headCell(key, name, small, hint, style) {
  const sorted = state.sort === key ? (state.falling ? "descending" : "ascending") : "none";
  const button = make("button", { type: "button", title: hint }, name, make("span", { class: "arrow", "aria-hidden": "true" }));
  return make("th", { scope: "col", class: style, "aria-sort": sorted, "data-key": key }, button,
    small ? make("small", {}, small) : null);
}

function heads(metrics, keys) {
  const leaks = metric => metric.leaks === null ? "" : metric.leaks ? "higher leaks" : "lower leaks";
  return make("tr", {}, ...SHOWN_NAMES.map(key => headCell(key, key, "", "", key === "defense" ? "" : "name")),
    headCell("seeds", state.apart ? "seed" : "seeds", "", "", "number"),
    ...metrics.map(metric => headCell(metric.key, metric.title, leaks(metric), `${metric.key}: ${metric.meaning}`, "number")),
    ...keys.map(key => headCell(key, key, "", "", "number")));
}

function numberCell(line, metric) {
  const { text, spread, bounds, reason, count, mean } = told(line, metric);
  if (!count)
    return make("td", { class: "number" }, make("span", { class: "absent", tabindex: 0, title: reason }, text));
  const bar = metric.unit === "percent";
  const style = bar ? `--share:${Math.min(Math.max(mean, 0), 1).toFixed(3)}` : null;
  return make("td", { class: bar ? "number bar" : "number", style, title: reason || null }, text,
    spread ? make("span", { class: "std" }, ` ${spread}`) : null, bounds ? make("small", {}, bounds) : null);
}

/** The first cell speaks for all names on a narrow screen. */
function whoCell(line) {
  const name = lineName(line), others = SHOWN_NAMES.slice(1).map(key => said(key, line[0])).filter(Boolean);
  const box = make("input", { type: "checkbox", class: "pick", value: name, "aria-label": `Compare ${title(line)} ${seedText(line)}` });
  box.checked = state.pair.includes(name);
  const remarks = ["differs by", "remarks"].map(key => saidBy(key, line)).filter(Boolean).join(" · ");
  return make("td", {}, make("label", {}, box, make("b", {}, said("defense", line[0]))),
    make("small", { class: "narrow" }, others.join(" · ")), remarks ? make("small", {}, remarks) : null);
}

const seedText = line => state.apart
  ? ["target", "prior", "attack"].map(name => said(`seed of ${name}`, line[0])).filter(Boolean).join("/") : String(line.length);

function lineRow(line, metrics, keys) {
  const names = SHOWN_NAMES.slice(1).map(key => make("td", { class: "name" }, make("span", {}, said(key, line[0]))));
  return make("tr", {}, whoCell(line), ...names, make("td", { class: "number" }, seedText(line)),
    ...metrics.map(metric => numberCell(line, metric)),
    ...keys.map(key => make("td", { class: "number fact" }, saidBy(key, line))));
}

function footRows(protocol, metrics, keys) {
  return protocol.anchors.map(([name, texts]) => make("tr", {}, make("th", { scope: "row" }, name),
    ...SHOWN_NAMES.slice(1).map(() => make("td", { class: "name" })), make("td"),
    ...metrics.map(metric => make("td", { class: "number" }, texts[LEADING.indexOf(metric)] ?? "–")),
    ...keys.map(() => make("td"))));
}

/** The section of a protocol with its first lines. */
function section(name, own, most) {
  const protocol = PROTOCOLS.get(name);
  const measured = metric => own.some(line => line.some(row => valueOf(metric.numbers.value, row) !== null));
  const wished = state.columns.filter(key => METRICS.has(key)).map(key => METRICS.get(key));
  const metrics = [...LEADING.filter(measured), ...wished.filter(metric => !LEADING.includes(metric))];
  const keys = state.columns.filter(key => COLUMNS.has(key) && !SHOWN_NAMES.includes(key));
  const table = make("table", { class: "results" },
    make("caption", { class: "unseen" }, `Results of protocol ${name}`),
    make("thead", {}, heads(metrics, keys)),
    make("tbody", {}, ...own.slice(0, most).map(line => lineRow(line, metrics, keys))),
    make("tfoot", {}, ...footRows(protocol, metrics, keys)));
  const links = Object.entries(protocol.links).map(([text, address]) => make("li", {}, make("a", { href: address }, text)));
  return make("section", { class: "protocol", "data-protocol": name },
    make("h2", {}, saidBy("dataset", own.map(([row]) => row)), " ",
      make("small", {}, "protocol ", make("code", {}, name), ` · ${count(own.length, state.apart ? "result" : "setup")}`)),
    links.length ? make("ul", { class: "links" }, ...links) : null,
    make("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `Results of protocol ${name}` }, table));
}

const count = (number, noun) => `${whole(number)} ${noun}${number === 1 ? "" : "s"}`;

/** Lay out the first lines of every protocol that has any: results of two protocols never share a table. */
function layOut(rows) {
  const found = lines(rows), protocols = new Map();
  for (const line of found) {
    const name = said("protocol", line[0]);
    if (protocols.has(name)) protocols.get(name).push(line);
    else protocols.set(name, [line]);
  }
  let left = state.most;
  const sections = [];
  for (const name of PROTOCOLS.keys()) {
    if (!protocols.has(name) || left <= 0) continue;
    sections.push(section(name, protocols.get(name), left));
    left -= protocols.get(name).length;
  }
  keepFocus(() => byId("tables").replaceChildren(...sections));
  byId("further").hidden = found.length <= state.most;
  byId("further").textContent = `Show ${Math.min(PAGE, found.length - state.most)} more of ${count(found.length - state.most, "line")}`;
  return found.length;
}

/** Do what replaces a table; who stands on a head or a box there stands on it afterwards. */
function keepFocus(replace) {
  const here = document.activeElement, head = here?.closest?.("#tables th")?.dataset.key, box = here?.matches?.(".pick") ? here.value : null;
  replace();
  const there = head ? [...document.querySelectorAll("#tables th")].find(one => one.dataset.key === head)?.querySelector("button")
    : box ? [...document.querySelectorAll(".pick")].find(one => one.value === box) : null;
  there?.focus({ preventScroll: true });
}

/** Show what fits the reader's wishes, count what each filter would leave, and keep the wishes in the address. */
function update() {
  const found = missed(), rows = ROWS.filter(row => found.misses[row] === 0);
  const shown = layOut(rows);
  const all = rows.length === DATA.count ? "" : ` of ${whole(DATA.count)}`;
  byId("shown").textContent = state.apart ? `${whole(rows.length)}${all} results`
    : `${count(shown, "setup")}, ${whole(rows.length)}${all} results`;
  byId("reset").hidden = !state.words && ![...state.facets.values()].some(wanted => wanted.size);
  [...state.facets.keys()].forEach((key, facet) => tellFacet(key, counted(key, facet, found)));
  offer();
  tellPair();
  history.replaceState(null, "", address());
}

// Filters

const distinct = new Map();
function valuesOf(key) {
  if (!distinct.has(key)) {
    const column = COLUMNS.get(key) ?? 0;
    distinct.set(key, [...new Set(Array.isArray(column) ? column : [column])].map(at).sort(ORDER));
  }
  return distinct.get(key);
}

const facetOf = key => [...document.querySelectorAll(".facet")].find(facet => facet.dataset.key === key);

function addFacet(key, open = false) {
  if (state.facets.has(key) && facetOf(key)) return;
  if (!state.facets.has(key)) state.facets.set(key, new Set());
  const wanted = () => state.facets.get(key);
  const known = valuesOf(key), values = [...known, ...[...wanted()].filter(value => !known.includes(value))];
  const choices = values.map(value => {
    const box = make("input", { type: "checkbox", value });
    box.addEventListener("change", () => { box.checked ? wanted().add(value) : wanted().delete(value); state.most = PAGE; update(); });
    return make("label", { "data-value": value }, box, make("span", {}, value || "(none)"), make("small"));
  });
  byId("facets").append(make("details", { class: "menu facet", "data-key": key, open }, make("summary", {}, key),
    make("div", { class: "choices", role: "group", "aria-label": key }, ...choices)));
}

/** The numbers beside a filter's values, and what is ticked. */
function tellFacet(key, counts) {
  const facet = facetOf(key), wanted = state.facets.get(key);
  facet.querySelector("summary").textContent = key + (wanted.size ? ` (${wanted.size})` : "");
  facet.classList.toggle("active", Boolean(wanted.size));
  for (const label of facet.querySelectorAll("label")) {
    const value = label.dataset.value, number = counts.get(PLACES.get(value)) ?? 0;
    label.querySelector("input").checked = wanted.has(value);
    label.querySelector("small").textContent = whole(number);
    label.classList.toggle("none", !number);
  }
}

function setUpFacets() {
  const few = [...VARYING.keys()].filter(key => valuesOf(key).length <= MOST_VALUES);
  const first = ["protocol", ...NAMES.slice(0, 5)].filter(key => few.includes(key));
  first.forEach(key => addFacet(key));
  const rest = few.filter(key => !first.includes(key)).sort();
  byId("more").append(make("option", { value: "" }, "Filter by…"), ...rest.map(key => make("option", { value: key }, key)));
  byId("more").hidden = !rest.length;
  byId("more").addEventListener("change", event => {
    const key = event.target.value;
    event.target.value = "";
    if (!key) return;
    addFacet(key);
    update();
    facetOf(key).open = true;
    facetOf(key).querySelector("summary").focus();
  });
}

// Sorting and columns

function chooseSort(key, falling) {
  Object.assign(state, { sort: key, falling, most: PAGE });
  update();
}

const shownKeys = () => [...SHOWN_NAMES, "seeds", ...LEADING.map(metric => metric.key), ...state.columns];
const titleOf = key => METRICS.get(key)?.title ?? key;

/** What the two lists of columns offer; they are long, and change with the columns and the sorting alone. */
function offer() {
  const now = JSON.stringify([state.columns, state.sort, state.falling]);
  if (now === offered) return;
  offered = now;
  offerSorts();
  offerColumns();
}
let offered = "";

function offerSorts() {
  const options = [...new Set(shownKeys())].flatMap(key => [
    make("option", { value: `${key}\nrising` }, `${titleOf(key)} ↑`), make("option", { value: `${key}\nfalling` }, `${titleOf(key)} ↓`)]);
  byId("sort").replaceChildren(make("option", { value: "" }, "Sort by…"), ...options);
  if (state.sort) byId("sort").value = `${state.sort}\n${state.falling ? "falling" : "rising"}`;
}

function offerColumns() {
  const option = key => make("option", { value: key }, (state.columns.includes(key) ? "✓ " : "") + titleOf(key));
  const metrics = [...METRICS.keys()].slice(DATA.leading), keys = [...COLUMNS.keys()].filter(key => !SHOWN_NAMES.includes(key)).sort();
  byId("column").replaceChildren(make("option", { value: "" }, "Columns…"),
    make("optgroup", { label: "Numbers" }, ...metrics.map(option)), make("optgroup", { label: "Settings" }, ...keys.map(option)));
}

// The address keeps what was chosen. Its own words begin with a hyphen; a key that does gets another one.

function address() {
  const words = new URLSearchParams();
  for (const [key, values] of state.facets)
    for (const value of values) words.append(key.startsWith("-") ? `-${key}` : key, value);
  if (state.words) words.set("-words", state.words);
  if (state.sort) words.set("-sort", (state.falling ? "-" : "+") + state.sort);
  if (state.apart) words.set("-seeds", "apart");
  for (const key of state.columns) words.append("-column", key);
  for (const name of state.pair) words.append("-pair", name);
  return `#${words}`;
}

function readAddress() {
  const words = new URLSearchParams(location.hash.slice(1)), sort = words.get("-sort") ?? "";
  for (const wanted of state.facets.values()) wanted.clear();
  for (const [key, value] of words) {
    if (key.startsWith("-") && !key.startsWith("--")) continue;
    const facet = key.startsWith("--") ? key.slice(1) : key;
    if (!state.facets.has(facet)) state.facets.set(facet, new Set());
    state.facets.get(facet).add(value);
  }
  Object.assign(state, { words: words.get("-words") ?? "", sort: sort.slice(1), falling: sort[0] === "-", most: PAGE,
    apart: words.get("-seeds") === "apart", columns: words.getAll("-column").filter(key => METRICS.has(key) || COLUMNS.has(key)),
    pair: words.getAll("-pair").filter(name => rowsNamed(name)).slice(0, 2) });
  for (const key of state.facets.keys()) addFacet(key);
  byId("words").value = state.words;
  byId("apart").checked = state.apart;
}

// Two lines side by side

/** The results that a ticked name stands for: `h123` is one, `h123*` its setup with all seeds. */
function rowsNamed(name) {
  const row = BY_NAME.get(name.replace(/\*$/, ""));
  return row === undefined ? null : name.endsWith("*") ? SETUPS.get(valueOf(DATA.setups, row)) : [row];
}

function pick(name) {
  state.pair = state.pair.includes(name) ? state.pair.filter(one => one !== name) : [...state.pair, name].slice(-2);
  tellPair();
  history.replaceState(null, "", address());
}

function tellPair() {
  for (const box of document.querySelectorAll(".pick")) box.checked = state.pair.includes(box.value);
  const bar = byId("picked");
  bar.hidden = !state.pair.length;
  const next = state.pair.length === 2
    ? make("button", { type: "button", class: "go", on: ["click", showDifference] }, "Compare")
    : make("span", { class: "hint" }, "tick another to compare");
  const clear = () => { state.pair = []; tellPair(); history.replaceState(null, "", address()); };
  bar.replaceChildren(...state.pair.map(name => make("span", { class: "who" }, title(rowsNamed(name)))), next,
    make("button", { type: "button", on: ["click", clear] }, "Clear"));
}

const GROUPS = [
  ["Protocol and evaluators", key => /^(protocol|evaluators?)(\.| |$)/.test(key)],
  ["Versions and machines", key => /^(version of |commit$|made_on|device$|machine|date$)/.test(key)],
  ["Seeds and origin", key => /^(seed of |seeds\.|command$|ids(\.|$))/.test(key)],
  ["Configuration", () => true],
];

function side(label, cells, equal) {
  return make("div", { class: cells.length > 2 ? "side four" : "side", "data-equal": equal },
    make("span", { class: "key-name" }, label), ...cells.map(cell => typeof cell === "string" ? make("span", {}, cell) : cell));
}

/** What two lines say, by group of keys; what is equal is marked, and hidden at first. */
function settings(left, right) {
  const groups = new Map(GROUPS.map(([name]) => [name, []]));
  for (const key of [...COLUMNS.keys()].sort()) {
    const a = saidBy(key, left), b = saidBy(key, right);
    if (a || b) groups.get(GROUPS.find(([, belongs]) => belongs(key))[0]).push(side(key, [a || "–", b || "–"], a === b));
  }
  return [...groups].filter(([, rows]) => rows.length).map(([name, rows]) => {
    const same = rows.every(row => row.dataset.equal !== undefined);
    return make("section", {}, make("h3", {}, name), same ? make("p", { class: "lead" }, "no difference") : null, ...rows);
  });
}

/** Both numbers of every metric and their difference. */
function numberSides(left, right) {
  return [...METRICS.values()].map(metric => {
    const a = told(left, metric), b = told(right, metric);
    if (!a.count && !b.count) return null;
    const cell = one => make("span", { title: one.reason || null }, `${one.text} ${one.spread}`.trim(), one.bounds ? make("small", {}, one.bounds) : null);
    return side(metric.title, [cell(a), cell(b), difference(a, b, metric)], false);
  }).filter(Boolean);
}

function difference(a, b, metric) {
  const by = b.mean - a.mean;
  if (!Number.isFinite(by)) return "–";
  const text = by === 0 ? "none" : (by > 0 ? "+" : "−") + show(Math.abs(by), metric.unit).replace("%", " points");
  if (metric.leaks === null || by === 0) return text;
  const [words, style] = verdict(a, b, by > 0 === metric.leaks);
  return make("span", {}, text, " ", make("small", { class: style }, words));
}

/** Who leaks more, as far as the seeds tell: nothing of one seed, nor of a difference that both intervals cover. */
function verdict(a, b, more) {
  if (a.count < 2 || b.count < 2) return ["one seed: may be chance", null];
  const half = Math.hypot(a.half || 0, b.half || 0);
  if (Math.abs(b.mean - a.mean) <= half) return ["within what seeds differ by", null];
  return more ? ["right leaks more", "more"] : ["right leaks less", "less"];
}

const REFUSED = "These two follow different protocols. Their numbers are not held against each other: evidence, references, "
  + "evaluators or metrics differ, so neither can be said to leak more. What differs stands below.";

function showDifference() {
  const [left, right] = state.pair.map(rowsNamed), dialog = byId("compare");
  const names = rows => make("b", {}, title(rows), make("small", {}, rows.length === 1 ? `result ${NAMED[rows[0]]}` : count(rows.length, "seed")));
  const apart = said("protocol", left[0]) !== said("protocol", right[0]);
  const numbers = apart ? [make("p", { class: "notice warning", id: "refused" }, REFUSED)]
    : [make("h3", {}, "Numbers"), side("", ["left", "right", "right − left"], false), ...numberSides(left, right)];
  const own = settings(left, right), equal = own.flatMap(part => [...part.querySelectorAll("[data-equal]")]).length;
  const box = make("input", { type: "checkbox", id: "equal" });
  const body = make("div", { class: "sides differing" }, make("div", { class: "side heads" }, make("span"), names(left), names(right)),
    ...numbers, make("label", { class: "lead" }, box, ` show the ${equal} settings that are equal too`), ...own);
  box.addEventListener("change", () => body.classList.toggle("differing", !box.checked));
  const close = make("button", { type: "button", class: "close", "aria-label": "Close", on: ["click", () => dialog.close()] }, "×");
  dialog.replaceChildren(close, make("h2", {}, "Side by side"), body);
  dialog.showModal();
  dialog.scrollTop = 0;
}

// Start

function setUp() {
  const form = document.querySelector(".tools");
  form.hidden = false;
  form.addEventListener("submit", event => event.preventDefault());
  byId("words").addEventListener("input", event => { state.words = event.target.value; state.most = PAGE; update(); });
  byId("apart").addEventListener("change", event => { state.apart = event.target.checked; state.pair = []; state.most = PAGE; update(); });
  byId("sort").addEventListener("change", event => {
    const [key, way] = event.target.value.split("\n");
    chooseSort(key, way === "falling");
  });
  byId("column").addEventListener("change", event => {
    const key = event.target.value;
    event.target.value = "";
    if (key) state.columns = state.columns.includes(key) ? state.columns.filter(one => one !== key) : [...state.columns, key];
    update();
  });
  byId("reset").addEventListener("click", () => { for (const wanted of state.facets.values()) wanted.clear(); state.words = byId("words").value = ""; update(); byId("words").focus(); });
  byId("further").addEventListener("click", () => { state.most += PAGE; update(); });
  byId("tables").addEventListener("click", event => {
    const key = event.target.closest("thead button")?.closest("th").dataset.key;
    if (key) chooseSort(key, state.sort === key && !state.falling);
  });
  byId("tables").addEventListener("change", event => { if (event.target.matches(".pick")) pick(event.target.value); });
}

/** A menu closes when one clicks elsewhere, and by Escape, which leads back to its name. */
function setUpMenus() {
  document.addEventListener("click", event => {
    for (const menu of document.querySelectorAll(".menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  });
  document.addEventListener("keydown", event => {
    const menu = event.key === "Escape" ? event.target.closest?.(".menu[open]") : null;
    if (menu) { menu.open = false; menu.querySelector("summary").focus(); }
  });
}

if (DATA.count) {
  setUp();
  setUpMenus();
  setUpFacets();
  readAddress();
  addEventListener("hashchange", () => { readAddress(); update(); });
  update();
}
