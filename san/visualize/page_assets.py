"""Style sheet and script of `san.visualize.page`; the page also works without the script."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--paper:#fff;--card:#f6f7f9;--ink:#1b1f24;--faint:#59636e;--line:#d5dae0;--bar:#3b6fb6;
--up:#1a7f37;--down:#b3261e}
@media (prefers-color-scheme:dark){:root:not([data-theme=light]){--paper:#14171b;--card:#1e2329;--ink:#e8eaed;
--faint:#a3adb8;--line:#39414a;--bar:#79aef2;--up:#57c172;--down:#ff8a80}}
:root[data-theme=dark]{color-scheme:dark;--paper:#14171b;--card:#1e2329;--ink:#e8eaed;--faint:#a3adb8;--line:#39414a;
--bar:#79aef2;--up:#57c172;--down:#ff8a80}
:root[data-theme=light]{color-scheme:light}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1120px;padding:0 16px 48px;background:var(--paper);color:var(--ink);
font:15px/1.45 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
.top{display:flex;justify-content:space-between;align-items:baseline;gap:16px}
.top button{flex:none;white-space:nowrap}
h1{font-size:22px;margin:22px 0 10px;overflow-wrap:anywhere}
button,input,select{font:inherit;color:inherit;background:var(--paper);border:1px solid var(--line);border-radius:6px;
padding:4px 9px}
button{cursor:pointer}
.facts{display:flex;flex-wrap:wrap;gap:6px 30px;margin:0 0 12px}
.facts dt{color:var(--faint);font-size:13px}.facts dd{margin:0;font-size:18px;overflow-wrap:anywhere}
details{margin:8px 0}summary{cursor:pointer;color:var(--faint)}
.problems summary{color:var(--down);font-weight:600}.problems li{overflow-wrap:anywhere}
.classes{columns:3 260px;list-style:none;padding:0;margin:10px 0;font-size:14px}
.classes li{display:flex;justify-content:space-between;gap:8px;padding:1px 10px 1px 0;break-inside:avoid}
.classes button{border:0;padding:0;background:none;text-align:left;overflow-wrap:anywhere}
.classes button:hover{text-decoration:underline}
.swatch{display:inline-block;width:12px;height:12px;border:1px solid #0007;border-radius:3px;margin-right:6px;
vertical-align:-1px;flex:none}
#tools{display:flex;flex-wrap:wrap;gap:8px 20px;align-items:center;position:sticky;top:0;z-index:2;padding:9px 0;
background:var(--paper);border-bottom:1px solid var(--line)}
#tools[hidden]{display:none}
#filter{width:min(300px,60vw)}
#count{color:var(--faint);margin-left:auto}
.columns{display:flex;gap:4px;margin:10px 14px 0 168px;color:var(--faint);font-size:13px}
.columns span{flex:1}
article{display:flex;gap:18px;margin:8px 0;padding:12px 14px;background:var(--card);border:1px solid var(--line);
border-radius:10px;content-visibility:auto;contain-intrinsic-size:auto 330px}
article[hidden]{display:none}
.score{flex:0 0 136px;display:flex;flex-direction:column;gap:1px}
.score b{font-size:23px;line-height:1.15}
.score small,.rank{color:var(--faint);font-size:13px}
.rank::before{content:"#"}
meter{width:100%;height:12px;margin:4px 0}
meter::-webkit-meter-bar{background:var(--line);border:0;border-radius:6px;height:7px}
meter::-webkit-meter-optimum-value{background:var(--bar);border-radius:6px}
meter::-moz-meter-bar{background:var(--bar)}
.up{color:var(--up);font-weight:600}.down{color:var(--down);font-weight:600}.same{color:var(--faint)}
.pictures{flex:1;min-width:0}
.name{font-weight:600;overflow-wrap:anywhere;margin-bottom:5px}
.strip{display:block;color:var(--faint)}
.strip+.strip{margin-top:6px}
.strip img{display:block;width:100%;height:auto;border-radius:4px;background:var(--line)}
.chips{display:flex;flex-wrap:wrap;gap:6px;list-style:none;padding:0;margin:8px 0 0;font-size:14px}
.chips li{border:1px solid var(--line);border-radius:14px;padding:1px 10px;background:var(--paper);
overflow-wrap:anywhere}
.chips i{color:var(--faint);font-style:normal}
dialog{border:0;border-radius:10px;padding:10px;background:var(--card);color:var(--ink);max-width:98vw;max-height:98vh}
dialog::backdrop{background:#000b}
dialog form{display:flex;gap:16px;align-items:center;margin-bottom:8px}
dialog form span:first-child{font-weight:600;overflow-wrap:anywhere}
.hint{color:var(--faint);margin-left:auto;white-space:nowrap}
#viewer-image{display:block;max-width:100%;max-height:86vh;margin:auto;background:#fff}
@media (max-width:700px){article{flex-direction:column;gap:6px}.score{flex:none}.columns{margin-left:14px}
.hint{display:none}dialog form{position:sticky;left:0;width:calc(98vw - 20px);justify-content:space-between}
#viewer-image{max-width:none;max-height:none;height:64vh}}
"""

SCRIPT = """
"use strict";
const root = document.documentElement, find = (id) => document.getElementById(id);
const rows = Array.from(document.querySelectorAll("article"));
rows.forEach((row, index) => { row.place = index; });
const number = (row, key) => (key in row.dataset ? Number(row.dataset[key]) : NaN);
const unscored = (row) => Number(Number.isNaN(number(row, "miou")));
const orders = {
  worst: (a, b) => unscored(a) - unscored(b) || number(a, "miou") - number(b, "miou"),
  best: (a, b) => unscored(a) - unscored(b) || number(b, "miou") - number(a, "miou"),
  name: (a, b) => (a.dataset.name < b.dataset.name ? -1 : Number(a.dataset.name > b.dataset.name)),
  change: (a, b) => Math.abs(number(b, "delta") || 0) - Math.abs(number(a, "delta") || 0),
};
let shown = rows;

function update() {
  const words = find("filter").value.trim().toLowerCase();
  rows.forEach((row) => { row.hidden = !row.dataset.search.includes(words); });
  const order = orders[find("sort").value];
  const sorted = [...rows].sort((a, b) => order(a, b) || a.place - b.place);
  find("rows").append(...sorted);
  sorted.forEach((row, index) => { row.querySelector(".rank").textContent = String(index + 1); });
  shown = sorted.filter((row) => !row.hidden);
  find("count").textContent = shown.length === rows.length
    ? rows.length + " images" : shown.length + " of " + rows.length + " images";
}

find("filter").addEventListener("input", update);
find("sort").addEventListener("change", update);
find("tools").addEventListener("submit", (event) => event.preventDefault());
document.querySelectorAll("[data-class]").forEach((button) => button.addEventListener("click", () => {
  find("filter").value = button.dataset.class;
  update();
  find("tools").scrollIntoView();
}));

const viewer = find("viewer");
let links = [], at = 0;
function view(index) {
  at = Math.min(Math.max(index, 0), links.length - 1);
  const row = links[at].closest("article");
  find("viewer-image").src = links[at].href;
  find("viewer-image").alt = row.dataset.name;
  find("viewer-name").textContent = row.dataset.name;
  if (!viewer.open) viewer.showModal();
}
document.querySelectorAll("a.strip").forEach((link) => link.addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  links = shown.flatMap((row) => Array.from(row.querySelectorAll("a.strip")));
  view(links.indexOf(link));
}));
viewer.addEventListener("keydown", (event) => {
  if (event.key === "ArrowRight") view(at + 1);
  if (event.key === "ArrowLeft") view(at - 1);
});
viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });

function remembered(value) {
  try {
    if (value === undefined) return localStorage.getItem("san-theme");
    localStorage.setItem("san-theme", value);
  } catch (error) { /* browsers may block storage for file:// */ }
  return null;
}
const before = remembered();
if (before === "dark" || before === "light") root.dataset.theme = before;
find("theme").addEventListener("click", () => {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = root.dataset.theme || (dark ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
  remembered(root.dataset.theme);
});
find("theme").hidden = find("tools").hidden = false;
update();
"""
