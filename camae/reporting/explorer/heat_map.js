// Heat map of cosines in the order of its clusters. Far out, a cell is the mean cosine of a block of perturbations.
const MOST_CELLS = 360; // on a side
const heat = { x: 0, y: 0, span: 1, cursor: null, cells: null, picture: null };

function heatStep() {
  return Math.max(1, Math.ceil(heat.span / MOST_CELLS));
}

// Cosines of the window, computed again only when it changes.
function heatCells() {
  const { model } = state;
  const step = heatStep();
  const key = `${state.number} ${heat.x} ${heat.y} ${heat.span}`;
  if (heat.cells?.key === key) return heat.cells;
  const count = Math.ceil(heat.span / step);
  const rows = blockMeans(model, heat.y, heat.span, step);
  const columns = heat.x === heat.y ? rows : blockMeans(model, heat.x, heat.span, step);
  const values = new Float32Array(count * count);
  const { width } = model;
  for (let i = 0; i < count; i++) {
    for (let j = 0; j < count; j++) {
      let sum = 0;
      for (let c = 0, a = i * width, b = j * width; c < width; c++) sum += rows[a + c] * columns[b + c];
      values[i * count + j] = sum;
    }
  }
  heat.cells = { key, step, count, values };
  return heat.cells;
}

function heatFrame(width) {
  const margin = (width - 96) / heat.span >= 11 ? 96 : 0; // room for names where they fit
  return { left: margin, side: width - margin, cell: ((width - margin) * heatStep()) / heat.span };
}

// One pixel for each cell; kept until cells or colors change.
function heatPicture(values, count) {
  const key = `${heat.cells.key} ${themeColor("middle")}`;
  if (heat.picture?.key === key) return heat.picture.canvas;
  const image = new ImageData(count, count);
  const colors = cosineColors();
  for (let i = 0; i < values.length; i++) {
    const color = colors[cosineStep(values[i])];
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = color[c];
    image.data[4 * i + 3] = 255;
  }
  const canvas = new OffscreenCanvas(count, count);
  canvas.getContext("2d").putImageData(image, 0, 0);
  heat.picture = { key, canvas };
  return canvas;
}

function drawHeat() {
  const canvas = byId("heat");
  const { model } = state;
  const { step, count, values } = heatCells();
  const side = Math.min(canvas.clientWidth || 480, 620);
  canvas.style.maxWidth = "620px";
  const [context, width] = prepared(canvas, side);
  const frame = heatFrame(width);
  context.imageSmoothingEnabled = false;
  context.drawImage(heatPicture(values, count), frame.left, 0, count * frame.cell, count * frame.cell);
  if (step === 1) markKnown(context, frame);
  if (frame.left) nameRows(context, frame);
  markSelected(context, frame);
  byId("heat-note").textContent = `${(heat.span ** 2).toLocaleString("en")} of ${(model.n ** 2).toLocaleString("en")} cosines. `
    + (step > 1 ? `A cell is the mean of up to ${step} x ${step} of them; zoom in to single ones. ` : "")
    + `Red: similar, blue: opposite.${page.sources.length && step === 1 ? " Open squares: known pairs." : ""}`;
}

function markKnown(context, { left, cell }) {
  if (cell < 4) return;
  const { model } = state;
  context.strokeStyle = themeColor("ink");
  context.lineWidth = 1;
  for (let i = heat.y; i < heat.y + heat.span; i++) {
    for (const other of model.known.get(model.order[i])?.keys() ?? []) {
      const j = model.place[other];
      if (j < heat.x || j >= heat.x + heat.span || j > i) continue; // below the diagonal
      context.strokeRect(left + (j - heat.x) * cell + 1.5, (i - heat.y) * cell + 1.5, cell - 3, cell - 3);
    }
  }
}

function nameRows(context, { left, side, cell }) {
  const { model } = state;
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = themeColor("ink");
  const short = (place) => {
    const name = model.names[model.order[place]];
    return name.length > 13 ? `${name.slice(0, 12)}\u2026` : name;
  };
  for (let i = 0; i < heat.span; i++) {
    context.textAlign = "right";
    context.fillText(short(heat.y + i), left - 5, (i + 0.5) * cell + 4);
    context.save();
    context.translate(left + (i + 0.5) * cell + 4, side + 5);
    context.rotate(-Math.PI / 2);
    context.fillText(short(heat.x + i), 0, 0);
    context.restore();
  }
}

function markSelected(context, { left, side, cell }) {
  const step = heatStep();
  const place = state.model.place[state.row];
  context.strokeStyle = themeColor("ink");
  context.lineWidth = 1;
  context.setLineDash([3, 3]);
  const line = (at, horizontal) => {
    if (at < 0 || at >= heat.span) return;
    const [start, thick] = [Math.floor(at / step) * cell, Math.max(cell, 2)];
    if (horizontal) context.strokeRect(left, start, side, thick);
    else context.strokeRect(left + start, 0, thick, side);
  };
  line(place - heat.y, true);
  line(place - heat.x, false);
  context.setLineDash([]);
  if (!heat.cursor) return;
  context.strokeStyle = themeColor("accent");
  context.lineWidth = 2;
  const [i, j] = heat.cursor;
  context.strokeRect(left + Math.floor((j - heat.x) / step) * cell, Math.floor((i - heat.y) / step) * cell, cell, cell);
}

// Place (row, column) in the order under a point, null outside.
function heatCell(x, y) {
  const { left, cell } = heatFrame(byId("heat").clientWidth);
  const { count, step } = heatCells();
  const [i, j] = [Math.floor(y / cell), Math.floor((x - left) / cell)];
  if (i < 0 || j < 0 || i >= count || j >= count) return null;
  return [heat.y + i * step, heat.x + j * step];
}

function heatText([i, j]) {
  const { model } = state;
  const { step, count, values } = heatCells();
  const [a, b] = [model.order[i], model.order[j]];
  if (step > 1) {
    const value = values[Math.floor((i - heat.y) / step) * count + Math.floor((j - heat.x) / step)];
    return `${step} perturbations from ${model.names[a]}, ${step} from ${model.names[b]}: mean cosine ${signed(value)}`;
  }
  const sources = sourcesOf(model, a, b);
  return `${model.names[a]} and ${model.names[b]}: cosine ${signed(cosine(model, a, b))}${sources.length ? `, known (${sources.join(", ")})` : ""}`;
}

function heatWindow(x, y, span) {
  const { n } = state.model;
  heat.span = Math.max(Math.min(6, n), Math.min(n, Math.round(span)));
  heat.x = Math.max(0, Math.min(n - heat.span, Math.round(x)));
  heat.y = Math.max(0, Math.min(n - heat.span, Math.round(y)));
  heat.cursor = null;
  drawHeat();
}

const heatPlot = {
  zoom(factor, x, y) {
    const { left, side } = heatFrame(byId("heat").clientWidth);
    const [across, down] = [(x - left) / side, y / side].map((share) => Math.max(0, Math.min(1, share)));
    const span = Math.max(6, Math.min(state.model.n, factor > 1 ? Math.floor(heat.span / factor) : Math.ceil(heat.span / factor)));
    heatWindow(heat.x + across * (heat.span - span), heat.y + down * (heat.span - span), span);
  },
  pan(dx, dy) {
    const { side } = heatFrame(byId("heat").clientWidth);
    const [right, down] = [dx, dy].map((pixels) => Math.round((pixels * heat.span) / side));
    if (right === 0 && down === 0) return false;
    heatWindow(heat.x - right, heat.y - down, heat.span);
    return true;
  },
  reset() {
    heatWindow(0, 0, state.model.n);
  },
  hover(x, y) {
    const cell = heatCell(x, y);
    showTip(byId("heat"), cell ? heatText(cell) : "", x, y);
  },
  click(x, y) {
    const cell = heatCell(x, y);
    if (!cell) return;
    if (heatStep() > 1) heatPlot.zoom(4, x, y);
    else select(state.model.order[cell[0]], true);
  },
  step(dx, dy) {
    const step = heatStep();
    const place = state.model.place[state.row];
    const [i, j] = heat.cursor ?? [place, place];
    const within = (value, start) => Math.max(start, Math.min(start + heat.span - 1, value));
    heat.cursor = [within(i + dy * step, heat.y), within(j + dx * step, heat.x)];
    byId("heat-status").textContent = heatText(heat.cursor);
    drawHeat();
  },
  enter() {
    if (heat.cursor) select(state.model.order[heat.cursor[0]], true);
  },
};

function downloadHeat() {
  const { model } = state;
  const span = Math.min(heat.span, 1000);
  const named = (start) => Array.from({ length: span }, (_, i) => model.order[start + i]);
  const [rows, columns] = [named(heat.y), named(heat.x)];
  byId("heat-status").textContent = span < heat.span ? "The first 1,000 x 1,000 cosines of the window are in the file; zoom in for others." : "";
  download(`${model.name}_cosines`, ["perturbation", ...columns.map((row) => model.names[row])],
    rows.map((a) => [model.names[a], ...columns.map((b) => cosine(model, a, b).toFixed(4))]));
}

function startHeat() {
  interact(byId("heat"), byId("heat-zoom"), heatPlot);
  byId("heat-csv").addEventListener("click", downloadHeat);
  byId("heat-find").addEventListener("click", () => {
    const place = state.model.place[state.row];
    const span = Math.min(state.model.n, 30);
    heatWindow(place - span / 2, place - span / 2, span);
  });
}
