// Elements, numbers, colors, canvases and downloads that every part of the page uses. Text is only ever set as text.
const byId = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.addEventListener("click", value);
    else if (value !== null && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

function drawn(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const signed = (value, digits = 3) => (value < 0 ? "\u2212" : "+") + Math.abs(value).toFixed(digits);
const counted = (n, word) => `${n.toLocaleString("en")} ${word}${n === 1 ? "" : "s"}`;

function shownNumber(value) {
  return Math.abs(value) >= 1e5 || (value !== 0 && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(+value.toPrecision(4));
}

function fillSelect(select, values, labels = values) {
  select.replaceChildren(...values.map((value, i) => element("option", { value }, labels[i])));
}

// Rows of cells as a table; a cell is text, {number} or {select: row, text}.
function fillTable(table, caption, header, rows, numeric, known = []) {
  const side = (i) => (numeric.includes(i) ? "number" : null);
  const head = element("tr", {}, ...header.map((text, i) => element("th", { scope: "col", class: side(i) }, text)));
  const body = rows.map((cells, r) =>
    element("tr", { class: known[r] ? "is-known" : null }, ...cells.map((cell, i) => {
      const content = typeof cell === "string" ? cell
        : element("button", { type: "button", onclick: () => select(cell.select, true) }, cell.text);
      return element("td", { class: side(i) }, content);
    })));
  table.replaceChildren(element("caption", {}, caption), element("thead", {}, head), element("tbody", {}, ...body));
}

// Colors of the style sheet, which follow the light or dark scheme.
function themeColor(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function rgb(hex) {
  return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
}

function mixed(a, b, share) {
  const [from, to] = [rgb(a), rgb(b)];
  return from.map((value, i) => Math.round(value + (to[i] - value) * share));
}

// Color of a cosine: red similar, blue opposite, `zero` between them. A table of 201 steps.
function cosineColors(zero = "middle") {
  const [middle, positive, negative] = [zero, "positive", "negative"].map(themeColor);
  return Array.from({ length: 201 }, (_, i) => {
    const value = (i - 100) / 100;
    return mixed(middle, value < 0 ? negative : positive, Math.abs(value) ** 0.8);
  });
}

const cosineStep = (value) => Math.round(100 * clipped(value)) + 100;
const css = ([r, g, b]) => `rgb(${r},${g},${b})`;

// A canvas of CSS size (width, height) at the screen's resolution; drawing is in CSS pixels.
function prepared(canvas, height) {
  const width = canvas.clientWidth || 480;
  const ratio = window.devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return [context, width, height];
}

function showTip(canvas, text, x, y) {
  const tip = canvas.parentElement.querySelector(".tip");
  tip.hidden = text === "";
  tip.textContent = text;
  const right = x > canvas.clientWidth / 2;
  tip.style.left = right ? "auto" : `${x + 14}px`;
  tip.style.right = right ? `${canvas.clientWidth - x + 14}px` : "auto";
  tip.style.top = `${y + 10}px`;
}

// Wheel, drag, buttons and keys of a plot. `plot` has zoom(factor, x, y), pan(dx, dy), reset(), hover(x, y), click(x, y),
// step(dx, dy) and enter().
function interact(canvas, holder, plot) {
  const middle = () => [canvas.clientWidth / 2, canvas.clientHeight / 2];
  const button = (text, label, action) => element("button", { type: "button", "aria-label": label, title: label, onclick: action }, text);
  holder.append(
    button("+", "Zoom in", () => plot.zoom(1.6, ...middle())),
    button("\u2212", "Zoom out", () => plot.zoom(1 / 1.6, ...middle())),
    button("Whole", "Show the whole map", () => plot.reset()),
  );
  let from = null;
  let moved = false;
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    plot.zoom(event.deltaY < 0 ? 1.25 : 0.8, event.offsetX, event.offsetY);
  }, { passive: false });
  canvas.addEventListener("pointerdown", (event) => {
    from = [event.offsetX, event.offsetY];
    moved = false;
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = [event.offsetX, event.offsetY];
    if (from && (moved || Math.hypot(x - from[0], y - from[1]) > 4)) {
      moved = true;
      if (plot.pan(x - from[0], y - from[1])) from = [x, y];
    } else if (!from) plot.hover(x, y);
  });
  canvas.addEventListener("pointerup", (event) => {
    if (from && !moved) plot.click(event.offsetX, event.offsetY);
    from = null;
  });
  canvas.addEventListener("pointerleave", () => showTip(canvas, "", 0, 0));
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key in steps) plot.step(...steps[event.key]);
    else if (event.key === "Enter" || event.key === " ") plot.enter();
    else if (event.key === "+" || event.key === "=") plot.zoom(1.6, ...middle());
    else if (event.key === "-") plot.zoom(1 / 1.6, ...middle());
    else if (event.key === "0") plot.reset();
    else return;
    event.preventDefault();
  });
}

// Lines of a chart as SVG: axes from 0 or the least value up, a tick at each of `ticks`.
function chart({ label, xLabel, yLabel, xTicks, yTicks, xOf, yOf, marks }) {
  const [left, right, top, bottom] = [52, 470, 12, 250];
  const x = (value) => left + xOf(value) * (right - left);
  const y = (value) => bottom - yOf(value) * (bottom - top);
  const axes = [drawn("path", { class: "axis", d: `M${left} ${top}V${bottom}H${right}` })];
  for (const [value, text] of xTicks) axes.push(drawn("text", { x: x(value), y: bottom + 16, "text-anchor": "middle" }, text));
  for (const [value, text] of yTicks) {
    axes.push(drawn("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) }));
    axes.push(drawn("text", { x: left - 7, y: y(value) + 4, "text-anchor": "end" }, text));
  }
  axes.push(drawn("text", { x: (left + right) / 2, y: bottom + 34, "text-anchor": "middle" }, xLabel));
  axes.push(drawn("text", { transform: `translate(13 ${(top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, yLabel));
  return drawn("svg", { viewBox: "0 0 480 292", role: "img", "aria-label": label }, ...axes, ...marks(x, y));
}

function csvText(header, rows) {
  const cell = (value) => {
    const text = String(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [header, ...rows].map((row) => row.map(cell).join(",")).join("\n") + "\n";
}

function download(name, header, rows) {
  const address = URL.createObjectURL(new Blob([csvText(header, rows)], { type: "text/csv" }));
  const link = element("a", { href: address, download: `${name.replace(/[^\w.-]+/g, "_")}.csv` });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
