// The selected perturbation: facts, nearest and most opposite, known pairs, wells, doses.
function showDetails() {
  const { model, row, cosine_N } = state;
  byId("selected").textContent = model.names[row];
  const facts = [
    ["wells", model.wells[row].toLocaleString("en")],
    ["distance from controls", model.strength[row].toFixed(2)],
    ...Object.keys(model.metadata).map((column) => [column.replaceAll("_", " "), valueOf(model, column, row) || "not given"]),
  ];
  byId("facts").replaceChildren(...facts.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value))));
  const count = Math.min(Number(byId("rows").value), state.ranked.length);
  const byCosine = (title, id, rows) => fillTable(
    byId(id), title, ["perturbation", "cosine", "known"],
    rows.map((other) => neighborCells(model, row, other, cosine_N)), [1],
    rows.map((other) => sourcesOf(model, row, other).length > 0));
  byCosine("Nearest", "nearest", state.ranked.slice(0, count));
  byCosine("Most opposite", "opposite", state.ranked.slice(-count || state.ranked.length).reverse());
  showKnown();
  showWells();
  showDoses();
}

function neighborCells(model, row, other, cosine_N) {
  return [{ select: other, text: model.names[other] }, signed(cosine_N[other]), sourcesOf(model, row, other).join(", ")];
}

function showKnown() {
  const { model, row, cosine_N, ranked } = state;
  const table = byId("known");
  table.hidden = page.sources.length === 0;
  const others = ranked.map((other, i) => [other, i + 1]).filter(([other]) => sourcesOf(model, row, other).length > 0);
  const most = Number(byId("rows").value);
  const title = others.length ? `Known pairs: ${others.length}` + (others.length > most ? `, the first ${most} are listed` : "")
    : "No known pair on this map";
  const rows = others.slice(0, most).map(([other, place]) =>
    [...neighborCells(model, row, other, cosine_N), `${place.toLocaleString("en")} of ${ranked.length.toLocaleString("en")}`]);
  fillTable(table, title, others.length ? ["perturbation", "cosine", "source", "rank"] : [], rows, [1, 3]);
}

function downloadNeighbors() {
  const { model, row, cosine_N, ranked } = state;
  download(`${model.names[row]}_cosines`, ["perturbation", "other", "cosine", "distance_from_controls", "known"],
    ranked.map((other) => [model.names[row], model.names[other], cosine_N[other].toFixed(4), model.strength[other].toFixed(4), sourcesOf(model, row, other).join("|")]));
}

// Thumbnails

function strip(entry, kind, width) {
  const channel = byId("channel").value;
  const shown = channel === "" ? 0 : entry.channels.indexOf(channel) + 1;
  if (channel !== "" && shown === 0) return element("div", { class: "note" }, `has no channel ${channel}`);
  const what = channel === "" ? `composite of ${entry.channels.join(", ")}` : channel;
  const image = element("img", { src: entry.file, alt: `${kind}, well ${entry.well} of plate ${entry.plate}: ${what}`, loading: "lazy" });
  image.style.left = `${-shown * width}px`;
  image.style.width = `${(entry.channels.length + 1) * width}px`;
  const frame = element("div", { class: "strip" }, image);
  frame.style.width = frame.style.height = `${width}px`;
  return frame;
}

function showWells() {
  if (!page.thumbnails) return;
  const { model, row } = state;
  const entries = page.thumbnails.wells[model.names[row]] ?? [];
  byId("wells-part").hidden = false;
  byId("wells").replaceChildren(...entries.map((entry) =>
    element("li", {}, element("button", {
      type: "button", "aria-pressed": "false", "data-file": entry.file, onclick: () => showBeside(entry),
    }, strip(entry, model.names[row], 84), `${entry.plate.split("/").at(-1)} ${entry.well}`))));
  if (entries.length) showBeside(entries[0]);
  else byId("beside").replaceChildren(element("p", { class: "note" }, "No image of a well of it."));
}

function showBeside(entry) {
  const size = page.thumbnails.size;
  const name = state.model.names[state.row];
  const controls = page.thumbnails.controls[entry.plate] ?? [];
  byId("wells").querySelectorAll("button").forEach((button) => {
    button.setAttribute("aria-pressed", String(button.dataset.file === entry.file));
  });
  const figure = (e, kind) => element("figure", {}, strip(e, kind, size), element("figcaption", {}, `${kind}: ${e.well}`));
  byId("beside").replaceChildren(
    figure(entry, name),
    ...controls.map((control) => figure(control, "negative control")),
    ...(controls.length ? [] : [element("p", { class: "note" }, "No control of this plate has an image.")]),
    channelNote(),
  );
  state.well = entry;
}

// What the colors of a composite stand for.
function channelNote() {
  const { channels, colors } = page.thumbnails;
  if (byId("channel").value !== "" || channels.length < 2) return element("p", { class: "channels" }, "Same contrast in all wells of a plate.");
  const keys = channels.map((channel, i) => {
    const key = element("i");
    key.style.background = colors[i];
    return element("li", {}, key, channel);
  });
  return element("ul", { class: "legend channels", "aria-label": "Colors of the channels" }, ...keys);
}

function startDetails() {
  byId("rows").addEventListener("change", showDetails);
  byId("neighbors-csv").addEventListener("click", downloadNeighbors);
  byId("dose-csv").addEventListener("click", downloadDoses);
  if (!page.thumbnails) return;
  fillSelect(byId("channel"), ["", ...page.thumbnails.channels], ["composite", ...page.thumbnails.channels]);
  byId("channel").addEventListener("change", () => {
    const well = state.well;
    showWells();
    if (well) showBeside(well);
  });
}

// Doses

function dosesOf(model, row) {
  const { doses } = model;
  if (!doses) return [];
  const found = [];
  for (let i = 0; i < doses.row.length; i++) {
    if (doses.row[i] === row) {
      found.push({ dose: doses.dose[i], strength: doses.strength[i], cosine: doses.cosine[i], wells: doses.wells[i] });
    }
  }
  return found;
}

function showDoses() {
  const { model, row } = state;
  const found = dosesOf(model, row);
  byId("dose-part").hidden = found.length === 0;
  if (found.length === 0) return;
  byId("dose-plot").replaceChildren(doseChart(model, found));
  fillTable(byId("doses"), `Doses of ${model.names[row]}`, [model.doses.column, "wells", "distance from controls", "cosine with all doses"],
    found.map((d) => [shownNumber(d.dose), String(d.wells), d.strength.toFixed(3), signed(d.cosine)]), [0, 1, 2, 3]);
}

function doseChart(model, found) {
  const logarithmic = found.every((d) => d.dose > 0);
  const scaled = (dose) => (logarithmic ? Math.log10(dose) : dose);
  const [low, high] = [scaled(found[0].dose), scaled(found.at(-1).dose)];
  const top = 1.1 * Math.max(1, ...found.map((d) => d.strength));
  return chart({
    label: `Distance from controls by dose: ${found.map((d) => `${shownNumber(d.dose)} gives ${d.strength.toFixed(2)}`).join(", ")}`,
    xLabel: model.doses.column.replaceAll("_", " ") + (logarithmic ? " (logarithmic)" : ""),
    yLabel: "distance from controls",
    xTicks: found.map((d) => [d.dose, shownNumber(d.dose)]),
    yTicks: [0, 0.5 * top, top].map((value) => [value, value.toFixed(1)]),
    xOf: (dose) => (high > low ? 0.05 + (0.9 * (scaled(dose) - low)) / (high - low) : 0.5),
    yOf: (value) => value / top,
    marks: (x, y) => [
      drawn("path", { class: "chance", d: `M${x(found[0].dose)} ${y(1)}H${x(found.at(-1).dose)}` }),
      drawn("path", { d: found.map((d, i) => `${i ? "L" : "M"}${x(d.dose)} ${y(d.strength)}`).join(""), fill: "none", stroke: "var(--accent)", "stroke-width": 2 }),
      ...found.map((d) => drawn("circle", { cx: x(d.dose), cy: y(d.strength), r: 4, fill: "var(--accent)" },
        drawn("title", {}, `${shownNumber(d.dose)}: ${d.strength.toFixed(3)}, ${counted(d.wells, "well")}`))),
    ],
  });
}

function downloadDoses() {
  const { model, row } = state;
  download(`${model.names[row]}_doses`, ["perturbation", model.doses.column, "wells", "distance_from_controls", "cosine"],
    dosesOf(model, row).map((d) => [model.names[row], d.dose, d.wells, d.strength.toFixed(4), d.cosine.toFixed(4)]));
}
