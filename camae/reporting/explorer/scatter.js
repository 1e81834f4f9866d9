// Embedding in two dimensions, colored by a metadata column, a number, or the cosine with the selected perturbation.
const COSINE = "cosine with the selected";
const STRENGTH = "distance from controls";
const WELLS = "wells";
const SCATTER_HEIGHT = 430;
const scatter = { center: [0.5, 0.5], zoomed: 1, cursor: -1, at: null, coloring: null };

// Positions in 0..1, by the larger of both extents so that distances keep their ratio.
function normalized(xy) {
  const least = [Infinity, Infinity];
  const most = [-Infinity, -Infinity];
  for (let i = 0; i < xy.length; i++) {
    least[i % 2] = Math.min(least[i % 2], xy[i]);
    most[i % 2] = Math.max(most[i % 2], xy[i]);
  }
  const extent = Math.max(most[0] - least[0], most[1] - least[1]) || 1;
  return xy.map((value, i) => 0.5 + (value - (least[i % 2] + most[i % 2]) / 2) / extent);
}

// Color of every row, a legend, and the text of a row's value.
function coloring(model) {
  const chosen = byId("color").value;
  if (chosen === `:${COSINE}`) {
    const table = cosineColors("faint").map(css);
    return {
      color: (row) => table[cosineStep(state.cosine_N[row])], text: (row) => `cosine ${signed(state.cosine_N[row])}`,
      legend: [rampKey(`linear-gradient(90deg, ${table[0]}, ${table[100]}, ${table[200]})`, "\u22121 to +1")],
    };
  }
  if (chosen === `:${STRENGTH}`) return ramp(model.strength, chosen.slice(1), (v) => v.toFixed(2));
  if (chosen === `:${WELLS}`) return ramp(model.wells, chosen.slice(1), (v) => String(v));
  const column = chosen.slice(1);
  const { levels, code } = model.metadata[column];
  const numbers = levels.map((text) => (text.trim() === "" ? NaN : Number(text)));
  const are = numbers.filter(Number.isFinite).length;
  if (levels.length > page.colors.length && are >= levels.length - 2) {
    return ramp(Float64Array.from(code, (c) => numbers[c]), column, shownNumber);
  }
  return categories(column, levels, code);
}

function rampKey(background, text) {
  const key = element("i", { class: "ramp" });
  key.style.background = background;
  return element("li", {}, key, text);
}

function ramp(values, title, format) {
  const known = Array.from(values).filter(Number.isFinite);
  let [low, high] = [Infinity, -Infinity];
  for (const value of known) { low = Math.min(low, value); high = Math.max(high, value); }
  const [from, to] = [mixed(themeColor("card"), themeColor("accent"), 0.22), rgb("#d55e00")];
  const middle = rgb(themeColor("accent"));
  const at = (share) => {
    const [a, b, s] = share < 0.5 ? [from, middle, 2 * share] : [middle, to, 2 * share - 1];
    return css(a.map((v, i) => Math.round(v + (b[i] - v) * s)));
  };
  return {
    color: (row) => (Number.isFinite(values[row]) ? at(high > low ? (values[row] - low) / (high - low) : 0.5) : themeColor("point")),
    text: (row) => `${title} ${Number.isFinite(values[row]) ? format(values[row]) : "not given"}`,
    legend: [rampKey(`linear-gradient(90deg, ${at(0)}, ${at(0.5)}, ${at(1)})`, `${format(low)} to ${format(high)}`)],
  };
}

function categories(column, levels, code) {
  const counts = new Array(levels.length).fill(0);
  code.forEach((c) => { counts[c] += 1; });
  const bySize = levels.map((_, i) => i).sort((a, b) => counts[b] - counts[a]);
  const colored = bySize.slice(0, page.colors.length - 1);
  const gray = themeColor("point");
  const colors = new Map(colored.map((level, i) => [level, page.colors[i]]));
  const key = (background, text) => {
    const swatch = element("i");
    swatch.style.background = background;
    return element("li", {}, swatch, text);
  };
  const legend = colored.map((level, i) => key(page.colors[i], `${levels[level] || "not given"} (${counts[level]})`));
  const others = bySize.length - colored.length;
  if (others) legend.push(key(gray, counted(others, "other value")));
  return {
    color: (row) => colors.get(code[row]) ?? gray,
    text: (row) => `${column.replaceAll("_", " ")}: ${levels[code[row]] || "not given"}`, legend,
  };
}

function scatterPoint(row) {
  const [width, height] = scatter.size;
  const side = (Math.min(width, height) - 36) * scatter.zoomed;
  return [
    width / 2 + (scatter.at[2 * row] - scatter.center[0]) * side,
    height / 2 - (scatter.at[2 * row + 1] - scatter.center[1]) * side,
  ];
}

function drawScatter() {
  const { model, row } = state;
  const [context, width, height] = prepared(byId("scatter"), SCATTER_HEIGHT);
  scatter.size = [width, height];
  const side = model.n > 3000 ? 3 : model.n > 500 ? 4 : 7;
  for (let i = 0; i < model.n; i++) {
    const [x, y] = scatterPoint(i);
    if (x < -9 || y < -9 || x > width + 9 || y > height + 9) continue;
    context.fillStyle = scatter.coloring.color(i);
    context.fillRect(x - side / 2, y - side / 2, side, side);
  }
  const count = Math.min(8, state.ranked.length);
  const ring = (i, color, radius) => {
    context.strokeStyle = color;
    context.lineWidth = 1.6;
    context.beginPath();
    context.arc(...scatterPoint(i), radius, 0, 7);
    context.stroke();
  };
  state.ranked.slice(-count).forEach((i) => ring(i, themeColor("negative"), 6));
  state.ranked.slice(0, count).forEach((i) => ring(i, themeColor("positive"), 6));
  ring(row, themeColor("ink"), 9);
  if (scatter.cursor >= 0) ring(scatter.cursor, themeColor("accent"), 11);
  label(context, row, width);
}

function label(context, row, width) {
  const [x, y] = scatterPoint(row);
  context.font = "600 12px system-ui, sans-serif";
  context.lineWidth = 3;
  context.strokeStyle = themeColor("card");
  context.fillStyle = themeColor("ink");
  context.textAlign = x > width / 2 ? "right" : "left";
  const from = x + (x > width / 2 ? -13 : 13);
  context.strokeText(state.model.names[row], from, y + 4);
  context.fillText(state.model.names[row], from, y + 4);
}

function scatterText(row) {
  return `${state.model.names[row]}, ${scatter.coloring.text(row)}`;
}

const scatterPlot = {
  nearest(x, y, most = 16) {
    let [best, found] = [most, -1];
    for (let i = 0; i < state.model.n; i++) {
      const [px, py] = scatterPoint(i);
      const distance = Math.hypot(px - x, py - y);
      if (distance < best) [best, found] = [distance, i];
    }
    return found;
  },
  zoom(factor, x, y) {
    const [width, height] = scatter.size;
    const before = Math.min(width, height) - 36;
    const zoomed = Math.max(1, Math.min(200, scatter.zoomed * factor));
    const shift = 1 / (before * scatter.zoomed) - 1 / (before * zoomed);
    scatter.center = [scatter.center[0] + (x - width / 2) * shift, scatter.center[1] - (y - height / 2) * shift];
    scatter.zoomed = zoomed;
    if (zoomed === 1) scatter.center = [0.5, 0.5];
    drawScatter();
  },
  pan(dx, dy) {
    const side = (Math.min(...scatter.size) - 36) * scatter.zoomed;
    scatter.center = [scatter.center[0] - dx / side, scatter.center[1] + dy / side];
    drawScatter();
    return true;
  },
  reset() {
    scatter.center = [0.5, 0.5];
    scatter.zoomed = 1;
    drawScatter();
  },
  hover(x, y) {
    const row = scatterPlot.nearest(x, y);
    showTip(byId("scatter"), row < 0 ? "" : scatterText(row), x, y);
  },
  click(x, y) {
    const row = scatterPlot.nearest(x, y);
    if (row >= 0) select(row, true);
  },
  // The nearest point in a direction: within 45 degrees of it.
  step(dx, dy) {
    const from = scatter.cursor < 0 ? state.row : scatter.cursor;
    const [x, y] = scatterPoint(from);
    let [best, found] = [Infinity, from];
    for (let i = 0; i < state.model.n; i++) {
      const [px, py] = scatterPoint(i);
      const along = (px - x) * dx + (py - y) * dy;
      const across = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
      if (i !== from && along > 0 && across <= along && along + across < best) [best, found] = [along + across, i];
    }
    scatter.cursor = found;
    byId("scatter-status").textContent = scatterText(found);
    drawScatter();
  },
  enter() {
    if (scatter.cursor >= 0) select(scatter.cursor, true);
  },
};

function recolor() {
  scatter.coloring = coloring(state.model);
  byId("legend").replaceChildren(...scatter.coloring.legend);
  drawScatter();
}

function relayout() {
  scatter.at = normalized(state.model.layouts[byId("layout").value]);
  scatter.cursor = -1;
  scatter.center = [0.5, 0.5];
  scatter.zoomed = 1;
}

// After another model: its layouts and columns, the same ones chosen where it has them.
function refillScatter() {
  const { model } = state;
  const keep = (id, values, labels) => {
    const before = byId(id).value;
    fillSelect(byId(id), values, labels);
    if (values.includes(before)) byId(id).value = before;
  };
  const columns = Object.keys(model.metadata);
  keep("layout", Object.keys(model.layouts));
  keep("color", [COSINE, STRENGTH, WELLS].map((name) => `:${name}`).concat(columns.map((name) => `.${name}`)),
    [COSINE, STRENGTH, WELLS].concat(columns.map((name) => name.replaceAll("_", " "))));
  relayout();
}

function downloadScatter() {
  const { model } = state;
  const xy = model.layouts[byId("layout").value];
  const columns = Object.keys(model.metadata);
  download(`${model.name}_${byId("layout").value}`, ["perturbation", "x", "y", "wells", "distance_from_controls", ...columns],
    model.names.map((name, i) => [name, xy[2 * i].toFixed(5), xy[2 * i + 1].toFixed(5), model.wells[i], model.strength[i].toFixed(4),
      ...columns.map((column) => valueOf(model, column, i))]));
}

function startScatter() {
  interact(byId("scatter"), byId("scatter-zoom"), scatterPlot);
  byId("layout").addEventListener("change", () => { relayout(); drawScatter(); });
  byId("color").addEventListener("change", recolor);
  byId("scatter-csv").addEventListener("click", downloadScatter);
}
