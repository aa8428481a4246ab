// Sorts and filters the tables, and draws the figures that stand in the page as data. Text from the data only ever
// becomes text: textContent here, and `text` below for what the drawing library would read as HTML.
"use strict";

const { figures, palettes: [LIGHT, DARK] } = JSON.parse(document.getElementById("data").textContent);

// --- Tables ---------------------------------------------------------------------------------------------------------

function order(a, b) {
  const [x, y] = [a.dataset.value, b.dataset.value];
  if (x === undefined || y === undefined) return 0;
  const difference = Number(x) - Number(y);
  return Number.isNaN(difference) ? x.localeCompare(y, "en", { numeric: true }) : difference;
}

// The last line of headings has one for each column.
const headings = (table) => [...table.tHead.rows].at(-1).cells;

function sort(table, heading) {
  const descending = heading.getAttribute("aria-sort") === "ascending";
  for (const other of heading.parentNode.cells) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const column = heading.cellIndex;
  const empty = (row) => row.cells[column].dataset.value === undefined;
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    // What is not measured stands last, whichever way the rest is sorted.
    if (empty(a) || empty(b)) return empty(a) - empty(b);
    return (descending ? -1 : 1) * order(a.cells[column], b.cells[column]);
  });
  table.tBodies[0].append(...rows);
}

function filter(section, words) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...section.querySelector("tbody").rows];
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !wanted.every((word) => text.includes(word));
  }
  const left = rows.filter((row) => !row.hidden).length;
  section.querySelector("output").textContent = wanted.length ? `${left} of ${rows.length} rows` : "";
}

for (const section of document.querySelectorAll("section.table")) {
  const table = section.querySelector("table");
  for (const heading of headings(table)) {
    heading.querySelector("button").addEventListener("click", () => sort(table, heading));
  }
  section.querySelector("input[type=search]")?.addEventListener("input", (event) => filter(section, event.target.value));
}

// A link to what is folded away opens it.
function reveal() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  target.querySelectorAll(":scope > details.fold").forEach((each) => (each.open = true));
  for (let each = target.closest("details"); each; each = each.parentNode.closest("details")) each.open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", reveal);
reveal();

// --- Figures --------------------------------------------------------------------------------------------------------

const short = (value) => {
  const size = Math.abs(value);
  return size && (size < 1e-4 || size >= 1e6) ? Number(value).toExponential(2).replace(/\.?0+e/, "e") : String(Number(Number(value).toPrecision(4)));
};
const text = (words) => echarts.format.encodeHTML(String(words));
const dark = matchMedia("(prefers-color-scheme: dark)");
const BOX = ["5 %", "25 %", "median", "75 %", "95 %"];

function colors() {
  const style = getComputedStyle(document.documentElement);
  const named = (name) => style.getPropertyValue(name).trim();
  const palette = dark.matches && !matchMedia("print").matches ? DARK : LIGHT;
  return { palette, ground: named("--ground"), ink: named("--ink"), quiet: named("--quiet"), rule: named("--rule") };
}

function axis(from, shades, vertical) {
  const common = {
    name: from.label,
    nameLocation: "middle",
    nameTextStyle: { color: shades.quiet },
    axisLine: { lineStyle: { color: shades.rule } },
    splitLine: { lineStyle: { color: shades.rule, opacity: 0.6 } },
  };
  if (from.categories.length) {
    return { ...common, type: "category", data: from.categories, inverse: true, nameGap: 0,
      axisTick: { show: false }, axisLabel: { color: shades.ink, interval: 0, width: 150, overflow: "truncate" } };
  }
  return { ...common, type: from.log ? "log" : "value", min: from.low, max: from.high,
    nameGap: vertical ? 44 : 30,
    axisTick: { customValues: from.ticks },
    axisLabel: { customValues: from.ticks, color: shades.quiet, formatter: short, hideOverlap: true },
    splitLine: { ...common.splitLine, customValues: from.ticks } };
}

function series(from, shades) {
  const color = shades.palette[from.color];
  const common = { name: from.name, color, animation: false };
  if (from.mark === "points") {
    return { ...common, type: "scatter", symbol: from.shape, symbolSize: from.shape === "circle" ? 11 : 13, z: 3,
      itemStyle: { color: from.hollow ? shades.ground : color, borderColor: color, borderWidth: 2, opacity: 1 },
      data: from.points.map((value, index) => ({ value, name: from.labels[index] })) };
  }
  return { ...common, type: "line", data: from.points, step: from.mark === "steps" ? "end" : false,
    symbol: from.mark === "line" && from.points.length < 30 ? "circle" : "none", symbolSize: 4, showAllSymbol: true,
    emphasis: { focus: "series" },
    lineStyle: { color, width: Math.min(1.75 * from.weight, 4), type: from.hollow ? "dashed" : "solid" } };
}

// Boxes stand in one row each; as several series they would stand side by side in every row.
function boxes(plot, shades) {
  const data = plot.y.categories.map(() => "-");
  for (const each of plot.series) {
    for (const [row, ...value] of each.points) {
      data[row] = { value, itemStyle: { borderColor: shades.palette[each.color] } };
    }
  }
  return [{ type: "boxplot", animation: false, boxWidth: [6, 14], itemStyle: { color: shades.ground, borderWidth: 1.5 }, data }];
}

const boxed = (plot) => plot.series.some((each) => each.mark === "boxes");

// The front's lines, each from its upper left end to its lower right one; `at` gives a point's place.
function steps(plot, at) {
  return plot.series.filter((each) => each.mark === "steps").flatMap(({ points }) => points.slice(1).flatMap((point, index) => {
    const [[x, y], [to, below]] = [at(points[index]), at(point)];
    return [[x, y, to, y], [to, Math.min(y, below), to, Math.max(y, below)]];
  }));
}

// Each point's name beside it and a little above, on a side where there is room, or over it where there is none at its right,
// and moved where another one, a point or the front is.
function name(plot, scatters, shades, width, height) {
  const share = (axis, value) => axis.log ? Math.log(value / axis.low) / Math.log(axis.high / axis.low)
    : (value - axis.low) / (axis.high - axis.low);
  const items = scatters.flatMap((each) => each.data);
  const at = ([x, y]) => [width * share(plot.x, x), height * (1 - share(plot.y, y))];
  const places = items.map(({ value }) => at(value));
  const lines = steps(plot, at);
  const taken = places.map(([x, y]) => [x - 7, x + 7, y]);
  for (const index of [...items.keys()].sort((a, b) => places[a][0] - places[b][0])) {
    const [[x, y], item] = [places[index], items[index]];
    const long = 6.4 * item.name.length;
    const room = [x + 10 + long < width + 20 && "right", x - 10 - long > -40 && "left"].filter(Boolean);
    const over = !room.includes("right") && x + long / 2 < width + 20;
    const sides = room.concat(over ? "top" : room.length ? [] : "left");
    const spots = { right: [x + 10, x + 10 + long, y], left: [x - 10 - long, x - 10, y], top: [x - long / 2, x + long / 2, y - 8] };
    const spot = (side, shift) => [spots[side][0], spots[side][1], spots[side][2] + shift];
    const free = ([from, to, line]) => line > 0 && line < height
      && !taken.some(([start, end, other]) => Math.abs(line - other) < 11 && from < end && start < to);
    const crossed = ([from, to, line]) =>
      lines.some(([left, top, right, below]) => left < to && from < right && top < line + 6 && line - 6 < below);
    const shifts = [...Array(8).keys()].flatMap((step) => [-9 - 11 * step, -9 + 11 * step]);
    const tries = shifts.flatMap((shift) => sides.map((side) => [side, shift]));
    const open = tries.filter((each) => free(spot(...each)));
    const [side, shift] = open.find((each) => !crossed(spot(...each))) ?? open[0] ?? [sides[0], -9];
    taken.push(spot(side, shift));
    item.label = { show: true, formatter: () => item.name, color: shades.ink, fontSize: 11,
      offset: [0, side === "top" ? shift + 9 : shift],
      textBorderColor: shades.ground, textBorderWidth: 3, position: side };
  }
}

function tip(plot, item) {
  if (boxed(plot)) {
    const values = item.data.value.map((value, index) => `${BOX[index]}: ${short(value)} ms`);
    return [plot.y.categories[item.dataIndex], ...values].map(text).join("<br>");
  }
  const from = plot.series[item.seriesIndex];
  const [x, y] = from.points[item.dataIndex];
  const lines = [from.labels[item.dataIndex] || from.name, `${plot.x.label}: ${short(x)}`];
  if (plot.y.label) lines.push(`${plot.y.label}: ${short(y)}`);
  return lines.map(text).join("<br>");
}

function option(plot, shades, width, height) {
  const rows = plot.y.categories.length > 0;
  const drawn = boxed(plot) ? boxes(plot, shades) : plot.series.map((each) => series(each, shades));
  if (!rows) name(plot, drawn.filter((each) => each.type === "scatter"), shades, width - 80, height - 60);
  return {
    animation: false,
    textStyle: { color: shades.ink, fontFamily: "system-ui, sans-serif" },
    grid: { left: rows ? 165 : 60, right: 20, top: 12, bottom: 48 },
    xAxis: axis(plot.x, shades, false),
    yAxis: axis(plot.y, shades, true),
    legend: { show: false },
    tooltip: { trigger: "item", confine: true, backgroundColor: shades.ground, borderColor: shades.rule,
      textStyle: { color: shades.ink }, formatter: (item) => tip(plot, item) },
    dataZoom: rows ? [] : [{ type: "inside", zoomOnMouseWheel: "ctrl" }, { type: "inside", yAxisIndex: 0, zoomOnMouseWheel: "ctrl" }],
    series: drawn,
  };
}

// --- Legends: text of the page, which wraps where a drawing's would be cut ------------------------------------------

const drawing = (name, attributes) => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};

function swatch(from) {
  const color = `var(--c${from.color})`;
  const line = from.mark === "line" || from.mark === "steps";
  const made = drawing("svg", { viewBox: line ? "0 0 26 12" : "0 0 12 12", width: line ? 26 : 12, height: 12, "aria-hidden": true });
  if (line) {
    made.append(drawing("path", { d: "M0 6H26", stroke: color, "stroke-width": Math.min(1.75 * from.weight, 4),
      "stroke-dasharray": from.hollow ? "4 3" : "none" }));
  } else {
    const look = { stroke: color, "stroke-width": 1.75, fill: from.hollow ? "none" : color };
    const shapes = { circle: ["circle", { cx: 6, cy: 6, r: 4 }], triangle: ["path", { d: "M6 1.5l5 9h-10z" }],
      diamond: ["path", { d: "M6 1l5 5-5 5-5-5z" }] };
    const [name, place] = from.mark === "boxes" ? ["path", { d: "M1 2h10v8h-10z" }] : shapes[from.shape];
    made.append(drawing(name, { ...look, ...place }));
  }
  return made;
}

function legend(plot, chart) {
  if (plot.series.length < 2) return [];
  return plot.series.map((each) => {
    const item = document.createElement("li");
    if (each.mark !== "line") {
      item.append(swatch(each), each.name);
      return item;
    }
    const button = document.createElement("button");
    button.type = "button";
    button.setAttribute("aria-pressed", true);
    button.append(swatch(each), each.name);
    button.addEventListener("click", () => {
      chart.dispatchAction({ type: "legendToggleSelect", name: each.name });
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    });
    item.append(button);
    return item;
  });
}

function values(plot) {
  const table = document.createElement("table");
  const boxes = boxed(plot);
  const line = (kind, words) => {
    const row = document.createElement("tr");
    for (const word of words) {
      const cell = document.createElement(kind);
      cell.textContent = word;
      row.append(cell);
    }
    return row;
  };
  table.createTHead().append(line("th", boxes ? ["", ...BOX] : ["", plot.x.label, plot.y.label].slice(0, plot.y.label ? 3 : 2)));
  const body = table.createTBody();
  for (const each of plot.series) {
    each.points.forEach((point, index) => {
      const name = boxes ? plot.y.categories[point[0]] : each.labels[index] ? `${each.labels[index]} (${each.name})` : each.name;
      const numbers = boxes ? point.slice(1) : point.slice(0, plot.y.label ? 2 : 1);
      body.append(line("td", [name, ...numbers.map(short)]));
    });
  }
  return table;
}

function show(frame) {
  const figure = figures[frame.dataset.figure];
  const plot = figure.plots[frame.querySelector("select")?.value ?? 0];
  const place = frame.querySelector(".plot");
  if (plot.y.categories.length) place.style.height = `${Math.max(160, 70 + 22 * plot.y.categories.length)}px`;
  const chart = echarts.getInstanceByDom(place) ?? echarts.init(place, null, { renderer: "svg" });
  chart.resize();
  chart.setOption(option(plot, colors(), place.clientWidth, place.clientHeight), true);
  frame.querySelector(".legend").replaceChildren(...legend(plot, chart));
  // The list of plots names a machine above its choices alone, which does not tell those of several apart.
  const several = figure.plots.some((each) => each.group !== plot.group);
  frame.querySelector(".note").textContent = [several && plot.group, plot.note].filter(Boolean).join(". ");
  frame.querySelector(".note").dataset.title = several && plot.brief || plot.title;
  place.setAttribute("aria-label", `${figure.title}, ${plot.title}`);
  frame.querySelector(".files a").href = `plots/${plot.name}.svg`;
  const details = frame.querySelector("details.values");
  details.querySelector("div").replaceChildren(...(details.open ? [values(plot)] : []));
  frame.dataset.drawn = plot.name;
}

const frames = [...document.querySelectorAll("figure[data-figure]")];
for (const frame of frames) {
  frame.querySelector("select")?.addEventListener("change", () => show(frame));
  frame.querySelector("details.values").addEventListener("toggle", () => show(frame));
  setTimeout(() => show(frame)); // one task for each, so that the page answers in between
}

let waiting;
addEventListener("resize", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => frames.forEach(show), 100);
});
dark.addEventListener("change", () => frames.forEach(show));

// --- Print: paper does not scroll, so that a wide table becomes several with the same leading columns -----------------

const COLUMNS = 7;

// Parts of the columns that the screen shows; each repeats what names a row.
function parts(table) {
  const shown = [...headings(table)].filter((cell) => cell.offsetParent);
  const names = shown.filter((cell) => !cell.classList.contains("number"));
  const figures = shown.filter((cell) => cell.classList.contains("number"));
  if (figures.length <= COLUMNS) return [];
  const rows = [...table.tBodies[0].rows].filter((row) => row.offsetParent);
  const found = [];
  for (let first = 0; first < figures.length; first += COLUMNS) {
    const columns = [...names, ...figures.slice(first, first + COLUMNS)];
    const part = document.createElement("table");
    part.className = "part";
    part.createTHead().insertRow().append(...columns.map((heading) => {
      const copy = heading.cloneNode(true);
      copy.querySelector("button").prepend(heading.dataset.group ? `${heading.dataset.group} ` : "");
      return copy;
    }));
    const body = part.createTBody();
    for (const row of rows) {
      body.insertRow().append(...columns.map((heading) => row.cells[heading.cellIndex].cloneNode(true)));
    }
    found.push(part);
  }
  return found;
}

let unfolded = [];
addEventListener("beforeprint", () => {
  document.querySelectorAll("section.table table").forEach((table) => table.after(...parts(table)));
  // Paper opens what is short: not the values of plots, nor tables without errors, nor the hashes of all records.
  unfolded = [...document.querySelectorAll("details:not([open], .values, .fold, .records)")];
  unfolded.forEach((each) => (each.open = true));
  frames.forEach(show);
});
addEventListener("afterprint", () => {
  document.querySelectorAll("table.part").forEach((part) => part.remove());
  unfolded.forEach((each) => (each.open = false));
});
matchMedia("print").addEventListener("change", () => frames.forEach(show));
