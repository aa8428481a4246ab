// Sorts and filters the tables, and draws the figures that stand in the page as data. Text from the data only ever
// becomes text: textContent here, and `text` below for what the drawing library would read as HTML.
"use strict";

const { figures, palette: LIGHT } = JSON.parse(document.getElementById("data").textContent);

// --- Tables ---------------------------------------------------------------------------------------------------------

function order(a, b) {
  const [x, y] = [a.dataset.value, b.dataset.value];
  if (x === undefined || y === undefined) return 0;
  const difference = Number(x) - Number(y);
  return Number.isNaN(difference) ? x.localeCompare(y, "en", { numeric: true }) : difference;
}

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
  for (const heading of table.tHead.rows[0].cells) {
    heading.querySelector("button").addEventListener("click", () => sort(table, heading));
  }
  section.querySelector("input").addEventListener("input", (event) => filter(section, event.target.value));
}

// --- Figures --------------------------------------------------------------------------------------------------------

const short = (value) => {
  const size = Math.abs(value);
  return size && (size < 1e-4 || size >= 1e6) ? Number(value).toExponential(2).replace(/\.?0+e/, "e") : String(Number(Number(value).toPrecision(4)));
};
const text = (words) => echarts.format.encodeHTML(String(words));
const dark = matchMedia("(prefers-color-scheme: dark)");
// The palette's colours in the same order, lighter.
const DARK = ["#4da3e0", "#f28e4b", "#a3a3a3", "#2fc79b", "#e39ac2", "#e0b63c", "#9ad4f7", "#c98a5a", "#a68bd9", "#6cc07f"];
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
  const color = shades.palette[from.color % shades.palette.length];
  const common = { name: from.name, color, animation: false };
  if (from.form === "boxes") {
    return { ...common, type: "boxplot", boxWidth: [6, 14], itemStyle: { color: shades.ground, borderColor: color },
      data: from.points.map((point) => point.slice(1)) };
  }
  if (from.form === "points") {
    return { ...common, type: "scatter", symbolSize: 11, z: 3,
      itemStyle: { color: from.hollow ? shades.ground : color, borderColor: color, borderWidth: 2 },
      data: from.points.map((value, index) => ({ value, name: from.labels[index] })) };
  }
  return { ...common, type: "line", data: from.points, step: from.form === "steps" ? "end" : false,
    symbol: from.form === "line" && from.points.length < 30 ? "circle" : "none", symbolSize: 5, showAllSymbol: true,
    emphasis: { focus: "series" },
    lineStyle: { color, width: 1.75, type: from.hollow ? "dashed" : "solid" } };
}

function tip(plot, item) {
  const from = plot.series[item.seriesIndex];
  if (from.form === "boxes") {
    const values = from.points[item.dataIndex].slice(1);
    const lines = values.map((value, index) => `${BOX[index]}: ${short(value)} ms`);
    return [plot.y.categories[item.dataIndex], ...lines].map(text).join("<br>");
  }
  const [x, y] = from.points[item.dataIndex];
  const lines = [from.labels[item.dataIndex] || from.name, `${plot.x.label}: ${short(x)}`];
  if (plot.y.label) lines.push(`${plot.y.label}: ${short(y)}`);
  return lines.map(text).join("<br>");
}

function option(plot, shades, width) {
  const named = plot.y.categories.length > 0;
  const legend = plot.series.length > 1;
  // How many rows the legend takes, for the room below the plot; long ones scroll.
  const letters = plot.series.reduce((sum, each) => sum + each.name.length + 7, 0);
  const rows = Math.min(legend ? Math.ceil((letters * 7) / width) : 0, 5);
  return {
    animation: false,
    textStyle: { color: shades.ink, fontFamily: "system-ui, sans-serif" },
    grid: { left: named ? 165 : 64, right: 20, top: 12, bottom: 52 + 22 * rows },
    xAxis: axis(plot.x, shades, false),
    yAxis: axis(plot.y, shades, true),
    legend: { show: legend, type: rows >= 5 ? "scroll" : "plain", bottom: 0, left: 0, right: 0, itemHeight: 9,
      textStyle: { color: shades.ink, fontSize: 12 }, inactiveColor: shades.rule, pageTextStyle: { color: shades.ink },
      pageIconColor: shades.ink },
    tooltip: { trigger: "item", confine: true, backgroundColor: shades.ground, borderColor: shades.rule,
      textStyle: { color: shades.ink }, formatter: (item) => tip(plot, item) },
    dataZoom: named ? [] : [{ type: "inside", zoomOnMouseWheel: "ctrl" }, { type: "inside", yAxisIndex: 0, zoomOnMouseWheel: "ctrl" }],
    series: plot.series.map((each) => series(each, shades)),
  };
}

function values(plot) {
  const table = document.createElement("table");
  const boxes = plot.series.some((each) => each.form === "boxes");
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
      const name = boxes ? plot.y.categories[index] : each.labels[index] ? `${each.labels[index]} (${each.name})` : each.name;
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
  if (plot.y.categories.length) place.style.height = `${Math.max(180, 76 + 26 * plot.y.categories.length)}px`;
  const chart = echarts.getInstanceByDom(place) ?? echarts.init(place, null, { renderer: "svg" });
  chart.resize();
  chart.setOption(option(plot, colors(), place.clientWidth), true);
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

function parts(table) {
  const head = [...table.tHead.rows[0].cells];
  const leading = head.findIndex((cell) => cell.classList.contains("model")) + 1;
  const rows = [...table.rows].filter((row) => !row.hidden);
  const found = [];
  for (let first = leading; first < head.length; first += COLUMNS) {
    const part = document.createElement("table");
    part.className = "part";
    for (const row of rows) {
      const copy = document.createElement("tr");
      const cells = [...row.cells];
      copy.append(...[...cells.slice(0, leading), ...cells.slice(first, first + COLUMNS)].map((cell) => cell.cloneNode(true)));
      (row.parentNode === table.tHead ? (part.tHead ?? part.createTHead()) : (part.tBodies[0] ?? part.createTBody())).append(copy);
    }
    found.push(part);
  }
  return found;
}

addEventListener("beforeprint", () => {
  document.querySelectorAll("details:not(.values)").forEach((each) => (each.open = true));
  document.querySelectorAll("section.table table").forEach((table) => table.after(...parts(table)));
  frames.forEach(show);
});
addEventListener("afterprint", () => document.querySelectorAll("table.part").forEach((part) => part.remove()));
matchMedia("print").addEventListener("change", () => frames.forEach(show));
