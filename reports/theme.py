"""Style and script of the page. Kept here as text, so that a report needs no file but plotly's own."""

from __future__ import annotations

STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --box: #ffffff; --text: #1b1f24; --soft: #5b6470;
  --line: #dfe3e8; --warn: #fff4dc; --warn-line: #e69f00; }
@media (prefers-color-scheme: dark) {
  :root { --page: #14171b; --box: #1c2026; --text: #e6e9ed; --soft: #a0a9b4; --line: #323941;
    --warn: #33290f; --warn-line: #b57d00; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1200px; padding: 24px 20px 48px; background: var(--page);
  color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; overflow-wrap: break-word; }
h1 { margin: 0; font-size: 26px; line-height: 1.25; }
h2 { margin: 0 0 4px; font-size: 19px; }
h3 { margin: 0; font-size: 14px; font-weight: 600; }
p { margin: 0 0 12px; color: var(--soft); max-width: 75ch; }
section, .card { background: var(--box); border: 1px solid var(--line); border-radius: 10px; }
section { margin-top: 16px; padding: 18px 20px; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); gap: 12px;
  margin-top: 16px; }
.card { padding: 14px 16px; }
.card h3 { color: var(--soft); font-weight: 500; }
.card strong { display: block; font-size: 26px; line-height: 1.3; font-weight: 650; }
.card p { margin: 4px 0 0; font-size: 13px; }
.warnings { margin: 16px 0 0; padding: 12px 16px 12px 34px; background: var(--warn);
  border: 1px solid var(--warn-line); border-radius: 10px; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr));
  gap: 16px 28px; margin-top: 16px; }
.columns > * { min-width: 0; }
figure { margin: 0; min-width: 0; }
figcaption p { margin: 0; font-size: 13px; }
.chart { height: 290px; width: 100%; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child { padding-left: 0; text-align: left; font-weight: 500; }
thead th { color: var(--soft); font-weight: 500; }
tbody tr:last-child > * { border-bottom: 0; }
.stack { min-width: 0; }
.bar { display: flex; gap: 2px; height: 22px; margin: 8px 0; border-radius: 5px; overflow: hidden;
  background: var(--line); }
.bar i { min-width: 1px; }
.stack + .scroll, .stack + figure { margin-top: 16px; }
.stack ul { display: flex; flex-wrap: wrap; gap: 2px 18px; margin: 0; padding: 0; list-style: none;
  font-size: 14px; }
.stack li { font-variant-numeric: tabular-nums; }
.stack li i { display: inline-block; width: 11px; height: 11px; margin-right: 6px; border-radius: 3px; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 4px 24px; margin: 10px 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
details { margin-top: 8px; }
summary { cursor: pointer; font-weight: 500; }
pre { margin: 10px 0 0; padding: 12px; max-height: 480px; overflow: auto; background: var(--page);
  border: 1px solid var(--line); border-radius: 8px;
  font: 13px/1.45 ui-monospace, Menlo, Consolas, monospace; }
footer { margin-top: 20px; color: var(--soft); font-size: 13px; }
@media (max-width: 520px) {
  body { padding: 14px 10px 32px; } section { padding: 14px 12px; } h1 { font-size: 22px; }
  .chart { height: 260px; } table { font-size: 13px; } th, td { padding: 6px 0 6px 10px; }
  tbody th { white-space: normal; min-width: 84px; }
  dl { grid-template-columns: minmax(0, 1fr); gap: 0; } dd { margin-bottom: 8px; } }
"""

SCRIPT = """
(function () {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const axis = () => ({ gridcolor: colour("--line"), zerolinecolor: colour("--line"),
    linecolor: colour("--line"), automargin: true, fixedrange: matchMedia("(pointer: coarse)").matches });
  const layout = (own) => Object.assign({}, own, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", hovermode: own.hovermode || "closest",
    font: { family: "system-ui, sans-serif", size: 13, color: colour("--soft") },
    margin: { l: 8, r: 10, t: own.showlegend ? 34 : 12, b: 8 }, bargap: 0.25,
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal", itemwidth: 30 },
    hoverlabel: { bgcolor: colour("--box"), font: { color: colour("--text") } },
    xaxis: Object.assign(axis(), title(own.xaxis)), yaxis: Object.assign(axis(), title(own.yaxis)) });
  const title = (own) => Object.assign({}, own,
    { title: { text: own.title || "", standoff: 10, font: { size: 13 } } });
  const figures = [];
  for (const box of document.querySelectorAll(".chart")) {
    const figure = JSON.parse(box.firstElementChild.textContent);
    box.replaceChildren();
    if (figure.layout.height) box.style.height = `${figure.layout.height}px`;
    figures.push([box, figure]);
    Plotly.newPlot(box, figure.data, layout(figure.layout), { responsive: true, displayModeBar: false });
  }
  dark.addEventListener("change", () => {
    for (const [box, figure] of figures) Plotly.react(box, figure.data, layout(figure.layout));
  });
})();
"""
