// State of the page, and what happens when a perturbation, a model or the color scheme changes.
const state = { number: 0, model: null, row: 0, cosine_N: null, ranked: [], well: null, frame: 0 };

// asked: by the user, so that it is announced and kept in the address.
function select(row, asked) {
  const start = performance.now();
  const { model } = state;
  state.row = row;
  state.cosine_N = cosines(model, row);
  state.ranked = ranked(model, row, state.cosine_N);
  scatter.cursor = -1;
  showDetails();
  drawSoon();
  if (asked) {
    const nearest = state.ranked[0];
    byId("search-status").textContent = `${model.names[row]} is selected`
      + (nearest === undefined ? "" : `; nearest: ${model.names[nearest]}, cosine ${signed(state.cosine_N[nearest])}`);
    try {
      history.replaceState(null, "", `#${encodeURIComponent(model.names[row])}`);
    } catch { /* some browsers refuse it for files */ }
  }
  document.documentElement.dataset.select = String(performance.now() - start);
}

// Both plots in the next frame: the numbers do not wait for them.
function drawSoon() {
  cancelAnimationFrame(state.frame);
  state.frame = requestAnimationFrame(() => {
    recolor();
    drawHeat();
    document.documentElement.dataset.ready ??= String(performance.now());
    document.documentElement.dataset.drawn = state.model.names[state.row];
  });
}

function showModel(number, name) {
  state.number = number;
  state.model = loadModel(number);
  const { model } = state;
  let strongest = 0;
  model.strength.forEach((value, row) => { if (value > model.strength[strongest]) strongest = row; });
  state.row = model.rowOf.get(name) ?? strongest;
  Object.assign(heat, { x: 0, y: 0, span: model.n, cursor: null });
  refillScatter();
  select(state.row, false);
}

function addressed() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

function begin() {
  startSearch();
  startDetails();
  startScatter();
  startHeat();
  fillSelect(byId("model"), page.models.map((_, i) => String(i)), page.models.map((model) => model.name));
  byId("model-field").hidden = page.models.length < 2;
  byId("model").addEventListener("change", () => showModel(Number(byId("model").value), state.model.names[state.row]));
  showModel(0, addressed());
  startCurves();
  const { model } = state;
  byId("summary").textContent = [
    counted(model.n, "perturbation"), `alignment ${page.about.alignment}`,
    ...(page.models.length > 1 ? [counted(page.models.length, "model")] : []),
    ...(page.sources.length ? [`known pairs: ${page.sources.join(", ")}`] : []),
  ].join(" \u00b7 ");
  byId("notes-part").hidden = page.notes.length === 0;
  byId("notes").append(...page.notes.map((note) => element("li", {}, note)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawSoon);
  window.addEventListener("resize", drawSoon);
  window.addEventListener("hashchange", () => {
    const row = state.model.rowOf.get(addressed());
    if (row !== undefined && row !== state.row) select(row, true);
  });
}

begin();
