// Data of the page: arrays of every model, decoded when the model is first shown, and cosines from its vectors.
const page = JSON.parse(document.getElementById("data").textContent);
const TYPES = { int16: Int16Array, int32: Int32Array, float32: Float32Array, float64: Float64Array };

function decoded(part) {
  const text = atob(document.getElementById(`block-${part.block}`).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new TYPES[part.type](bytes.buffer);
}

const loaded = new Map();

function loadModel(number) {
  if (loaded.has(number)) return loaded.get(number);
  const stored = page.models[number];
  const [n, width] = stored.vectors.shape;
  const steps = decoded(stored.vectors);
  const scale = decoded(stored.scale);
  const vectors = new Float32Array(n * width);
  for (let i = 0, at = 0; i < n; i++) for (let c = 0; c < width; c++, at++) vectors[at] = steps[at] * scale[i];
  const metadata = {};
  for (const [column, part] of Object.entries(stored.metadata)) {
    metadata[column] = { levels: part.levels, code: decoded(part.code) };
  }
  const model = {
    name: stored.name, names: stored.names, n, width, vectors, metadata,
    order: decoded(stored.order), strength: decoded(stored.strength), wells: decoded(stored.wells),
    layouts: Object.fromEntries(Object.entries(stored.layouts).map(([name, part]) => [name, decoded(part)])),
    rowOf: new Map(stored.names.map((name, i) => [name, i])),
    known: knownPairs(decoded(stored.pairs)),
    doses: stored.doses && {
      column: stored.doses.column, row: decoded(stored.doses.row),
      dose: decoded(stored.doses.dose), strength: decoded(stored.doses.strength),
      cosine: decoded(stored.doses.cosine), wells: decoded(stored.doses.wells),
    },
  };
  model.place = new Int32Array(n); // of each row in the heat map
  model.order.forEach((row, place) => { model.place[row] = place; });
  model.texts = model.names.map((name, i) => searchText(model, name, i));
  loaded.set(number, model);
  return model;
}

// row -> (other row -> names of the sources that know the pair)
function knownPairs(triplets) {
  const known = new Map();
  const add = (a, b, source) => {
    if (!known.has(a)) known.set(a, new Map());
    const others = known.get(a);
    others.set(b, [...(others.get(b) ?? []), source]);
  };
  for (let i = 0; i < triplets.length; i += 3) {
    const source = page.sources[triplets[i + 2]];
    add(triplets[i], triplets[i + 1], source);
    add(triplets[i + 1], triplets[i], source);
  }
  return known;
}

function sourcesOf(model, a, b) {
  return model.known.get(a)?.get(b) ?? [];
}

function searchText(model, name, row) {
  const words = Object.values(model.metadata).map((column) => column.levels[column.code[row]]);
  return [name.toLowerCase(), words.join("\n").toLowerCase()];
}

function valueOf(model, column, row) {
  const part = model.metadata[column];
  return part.levels[part.code[row]];
}

function clipped(cosine) {
  return Math.max(-1, Math.min(1, cosine));
}

function cosine(model, a, b) {
  const { vectors, width } = model;
  let sum = 0;
  for (let c = 0, i = a * width, j = b * width; c < width; c++) sum += vectors[i + c] * vectors[j + c];
  return clipped(sum);
}

// Cosines of one perturbation with all.
function cosines(model, row) {
  const out = new Float32Array(model.n);
  for (let i = 0; i < model.n; i++) out[i] = cosine(model, row, i);
  return out;
}

// Rows other than `row`, the most similar first.
function ranked(model, row, cosine_N) {
  const rows = [];
  for (let i = 0; i < model.n; i++) if (i !== row) rows.push(i);
  return rows.sort((a, b) => cosine_N[b] - cosine_N[a]);
}

// Mean vectors of `step` consecutive rows of the heat map, from place `start` on: their inner products are the mean
// cosines of blocks.
function blockMeans(model, start, span, step) {
  const { width, vectors, order } = model;
  const count = Math.ceil(span / step);
  const out = new Float32Array(count * width);
  for (let b = 0; b < count; b++) {
    const last = Math.min(start + span, start + (b + 1) * step);
    const size = last - start - b * step;
    for (let place = start + b * step; place < last; place++) {
      for (let c = 0, i = order[place] * width; c < width; c++) out[b * width + c] += vectors[i + c] / size;
    }
  }
  return out;
}
