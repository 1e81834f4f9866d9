// Recall curves of all models side by side, for one source of known pairs.
const DASHES = ["", "7 3", "2 3", "9 3 2 3"];

function showCurves() {
  const source = byId("source").value;
  const lines = page.recall.filter((line) => line.source === source);
  const style = (i) => ({ stroke: page.colors[i % page.colors.length], "stroke-dasharray": DASHES[Math.floor(i / page.colors.length) % DASHES.length] });
  const shares = [0, 0.25, 0.5, 0.75, 1].map((value) => [value, `${100 * value}`]);
  byId("recall-plot").replaceChildren(chart({
    label: `Recall against the share of pairs called, ${source}: ${lines.map((line) => `${line.model} ${atTenth(line)}`).join(", ")} at 10 %`,
    xLabel: "pairs called, % (half in each tail)", yLabel: "recall, %", xTicks: shares, yTicks: shares,
    xOf: (value) => value, yOf: (value) => value,
    marks: (x, y) => [
      drawn("path", { class: "chance", d: `M${x(0)} ${y(0)}L${x(1)} ${y(1)}` }),
      ...lines.map((line, i) => drawn("path", {
        ...style(i), fill: "none", "stroke-width": 2,
        d: line.percentile.map((share, k) => `${k ? "L" : "M"}${x(share).toFixed(1)} ${y(line.recall[k]).toFixed(1)}`).join(""),
      }, drawn("title", {}, line.model))),
    ],
  }));
  fillTable(byId("recall"), `Recall, ${source}`, ["model", "recall", "found", "known pairs"],
    lines.map((line) => [line.model, (line.found / line.pairs).toFixed(3), String(line.found), String(line.pairs)]), [1, 2, 3]);
  byId("recall").querySelectorAll("tbody tr").forEach((row, i) => {
    const key = drawn("svg", { viewBox: "0 0 26 8", "aria-hidden": "true", style: "width:26px;display:inline-block;margin-right:7px" },
      drawn("path", { ...style(i), d: "M0 4H26", "stroke-width": 3 }));
    row.firstChild.prepend(key);
  });
}

const atTenth = (line) => line.recall[line.percentile.findIndex((share) => share >= 0.0999)].toFixed(3);

function startCurves() {
  if (page.recall.length === 0) return;
  byId("recall-part").hidden = false;
  fillSelect(byId("source"), [...new Set(page.recall.map((line) => line.source))]);
  byId("source").addEventListener("change", showCurves);
  byId("recall-csv").addEventListener("click", () => download("recall_curves", ["model", "source", "percentile", "recall"],
    page.recall.flatMap((line) => line.percentile.map((share, k) => [line.model, line.source, share, line.recall[k]]))));
  showCurves();
}
