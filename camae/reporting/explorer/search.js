// Search: a combobox over names and metadata of perturbations.
const MOST_FOUND = 30;
let foundRows = [];
let foundAt = -1;

// Rows by how they match: the name begins with the text, holds it, or the metadata holds it.
function search(model, text) {
  const wanted = text.trim().toLowerCase();
  if (wanted === "") return [[], 0];
  const groups = [[], [], []];
  for (let i = 0; i < model.n; i++) {
    const [name, words] = model.texts[i];
    const at = name.indexOf(wanted);
    if (at === 0) groups[0].push(i);
    else if (at > 0) groups[1].push(i);
    else if (words.includes(wanted)) groups[2].push(i);
  }
  const rows = groups.flat();
  return [rows.slice(0, MOST_FOUND), rows.length];
}

function showFound() {
  const start = performance.now();
  const model = state.model;
  const [rows, total] = search(model, byId("search").value);
  foundRows = rows;
  foundAt = rows.length ? 0 : -1;
  byId("found").replaceChildren(...rows.map((row, i) =>
    element("li", { role: "option", id: `found-${i}`, "aria-selected": String(i === 0) },
      model.names[row], element("span", {}, counted(model.wells[row], "well")))));
  byId("found").querySelectorAll("li").forEach((item, i) => {
    item.addEventListener("pointerdown", (event) => { event.preventDefault(); choose(i); });
  });
  openFound(rows.length > 0);
  byId("search-status").textContent = byId("search").value.trim() === "" ? ""
    : `${counted(total, "perturbation")} found${total > rows.length ? `, the first ${rows.length} are listed` : ""}`;
  document.documentElement.dataset.search = String(performance.now() - start);
}

function openFound(open) {
  byId("found").hidden = !open;
  byId("search").setAttribute("aria-expanded", String(open));
  mark(open ? foundAt : -1);
}

function mark(at) {
  foundAt = at;
  byId("found").querySelectorAll("li").forEach((item, i) => {
    item.setAttribute("aria-selected", String(i === at));
    if (i === at) item.scrollIntoView({ block: "nearest" });
  });
  if (at < 0) byId("search").removeAttribute("aria-activedescendant");
  else byId("search").setAttribute("aria-activedescendant", `found-${at}`);
}

function choose(i) {
  const row = foundRows[i];
  openFound(false);
  if (row === undefined) return;
  byId("search").value = state.model.names[row];
  select(row, true);
}

function startSearch() {
  const input = byId("search");
  input.addEventListener("input", showFound);
  input.addEventListener("blur", () => openFound(false));
  input.addEventListener("keydown", (event) => {
    const open = !byId("found").hidden;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (!open) showFound();
      else mark((foundAt + (event.key === "ArrowDown" ? 1 : foundRows.length - 1)) % foundRows.length);
    } else if (event.key === "Enter" && open) choose(foundAt);
    else if (event.key === "Escape") openFound(false);
  });
}
