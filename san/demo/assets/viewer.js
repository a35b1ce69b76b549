// The result: picture, colours over it, the class under the cursor, legend, downloads.
// `props.value` is JSON made by san/demo/view.py: a message, or where the result is fetched. Texts of visitors are only
// ever set as textContent.
const find = (name) => element.querySelector(".san-" + name);
const NONE_NAME = "none of these";
const HINT = find("readout").textContent;
let shown = null; // the last result: its classes, labels, image
let held = null; // class shown alone: an index, -1 for none of these, null for all
let cross = null; // [x, y] in pixels of the label map

function bytes(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

async function inflate(base64, size) {
  const stream = new Blob([bytes(base64)]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  return size === 1 ? new Uint8Array(buffer) : new Uint16Array(buffer);
}

const percent = (share) => (share > 0 && share < 0.001 ? "< 0.1 %" : (100 * share).toFixed(1) + " %");
const duration = (seconds) => (seconds < 1 ? Math.max(1, Math.round(1000 * seconds)) + " ms" : seconds.toFixed(1) + " s");

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function say(text) {
  const message = find("message");
  message.textContent = sentence(text);
  message.hidden = !text;
  if (text) message.scrollIntoView({ block: "nearest" });
}

function fail(text) {
  asked = false;
  say(text);
  document.dispatchEvent(new Event("san-failed"));
}

let arriving = 0;
let received = null;
async function receive() {
  if (!props.value || props.value === received) return; // a result is fetched once
  received = props.value;
  const turn = ++arriving;
  let view = JSON.parse(received);
  try {
    if (view.result) view = await ask("san/result/" + view.result);
  } catch (error) {
    if (turn === arriving) fail(error.message);
    return;
  }
  if (turn !== arriving) return; // a later result came first
  if (!view.image) {
    fail(view.message);
    return;
  }
  if (!view.picture && shown && view.image.id !== shown.image.id) {
    fail("The server no longer keeps this picture; choose it again.");
    return;
  }
  say(view.message || lost);
  if (view.picture) {
    find("picture").src = view.picture;
    find("picture").alt = view.image.title;
    find("stage").style.aspectRatio = view.image.width + " / " + view.image.height;
    find("stage").style.setProperty("--shape", view.image.width / view.image.height);
  }
  const labels = view.labels ? await inflate(view.labels, view.bytes) : null;
  if (turn !== arriving) return; // a later result came first
  const isFirst = !shown;
  shown = { ...view, map: labels, unnamed: view.bytes === 1 ? 255 : 65535 };
  held = null;
  cross = null;
  point(null);
  find("readout").textContent = HINT; // what stood there was of another result
  paint();
  writeNames();
  list();
  if (view.picture) document.dispatchEvent(new Event("san-shown"));
  if (asked || (view.picture && !isFirst)) bringIntoView();
  asked = false;
}

// On a phone the result lies below what was asked.
let asked = false; // for other words, by the button or Enter
function bringIntoView() {
  const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "instant" : "smooth";
  if (find("stage").getBoundingClientRect().top > window.innerHeight / 2)
    element.querySelector(".san-viewer").scrollIntoView({ behavior });
}
document.addEventListener("click", (event) => event.target.closest("#san-segment") && (asked = true));
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && event.target.closest("#san-words")) asked = true;
});

function classAt(x, y) {
  const label = shown.map[y * shown.image.width + x];
  return label === shown.unnamed ? -1 : label;
}

// Colours on a canvas as fine as a screen, a thin dark line between classes, hatching where there is none.
function paint() {
  const canvas = find("colours");
  if (!shown.map) {
    canvas.hidden = true;
    return;
  }
  const { width, height } = shown.image;
  const scale = Math.min(1, 1600 / Math.max(width, height));
  canvas.width = Math.max(1, Math.round(width * scale));
  canvas.height = Math.max(1, Math.round(height * scale));
  const columns = Array.from({ length: canvas.width }, (_, x) => Math.min(width - 1, Math.floor((x + 0.5) / scale)));
  const colors = shown.classes.map((each) => [1, 3, 5].map((at) => parseInt(each.color.slice(at, at + 2), 16)));
  const context = canvas.getContext("2d");
  const picture = context.createImageData(canvas.width, canvas.height);
  const data = picture.data;
  const row = (y) => Math.min(height - 1, Math.floor((y + 0.5) / scale)) * width;
  for (let y = 0, at = 0; y < canvas.height; y++) {
    const here = row(y);
    const below = row(Math.min(y + 1, canvas.height - 1));
    for (let x = 0; x < canvas.width; x++, at += 4) {
      const label = shown.map[here + columns[x]];
      const none = label === shown.unnamed;
      const right = columns[Math.min(x + 1, canvas.width - 1)];
      const edge = label !== shown.map[here + right] || label !== shown.map[below + columns[x]];
      const faded = held !== null && held !== (none ? -1 : label);
      const color = edge ? [20, 20, 24] : none ? [255, 255, 255] : colors[label];
      data[at] = color[0];
      data[at + 1] = color[1];
      data[at + 2] = color[2];
      data[at + 3] = faded ? 28 : none && !edge && (x + y) % 10 > 2 ? 60 : 255;
    }
  }
  context.putImageData(picture, 0, 0);
  canvas.hidden = false;
}

// Each class's name where it has most room: the cell of a coarse grid that is farthest from other classes.
function writeNames() {
  const layer = find("labels");
  layer.replaceChildren();
  if (!shown.map) return;
  const { width, height } = shown.image;
  const step = Math.max(width, height) / 72;
  const [columns, rows] = [width, height].map((length) => Math.max(1, Math.round(length / step)));
  const cells = Array.from({ length: rows * columns }, (_, at) =>
    classAt(
      Math.min(width - 1, Math.floor((((at % columns) + 0.5) * width) / columns)),
      Math.min(height - 1, Math.floor(((Math.floor(at / columns) + 0.5) * height) / rows))
    ));
  const room = new Array(cells.length).fill(cells.length);
  const relax = (at, others) => {
    for (const other of others)
      room[at] = Math.min(room[at], other === null || cells[other] !== cells[at] ? 1 : room[other] + 1);
  };
  for (let at = 0; at < cells.length; at++)
    relax(at, [at % columns ? at - 1 : null, at >= columns ? at - columns : null]);
  for (let at = cells.length - 1; at >= 0; at--)
    relax(at, [(at + 1) % columns ? at + 1 : null, at + columns < cells.length ? at + columns : null]);
  const best = new Map();
  cells.forEach((index, at) => {
    if (index >= 0 && room[at] >= 4 && (!best.has(index) || room[at] > room[best.get(index)])) best.set(index, at);
  });
  for (const [index, at] of [...best].sort((a, b) => room[b[1]] - room[a[1]]).slice(0, 14)) {
    const name = make("span", "", shown.classes[index].name);
    layer.append(name);
    const place = (property, part, size) => // a plate at the border stays inside
      (name.style[property] = "clamp(" + size / 2 + "px, " + 100 * part + "%, calc(100% - " + size / 2 + "px))");
    place("left", ((at % columns) + 0.5) / columns, name.offsetWidth + 8);
    place("top", (Math.floor(at / columns) + 0.5) / rows, name.offsetHeight + 8);
  }
}

function row(index, name, color, share, score, isContext) {
  const item = make("li");
  const button = make("button", "san-class");
  button.type = "button";
  button.dataset.index = index;
  button.title = name; // which the list cuts where it is long
  button.setAttribute("aria-pressed", "false");
  const swatch = make("i", "san-swatch" + (index < 0 ? " san-hatched" : ""));
  if (color) swatch.style.background = color;
  const title = make("span", "san-name", name);
  if (isContext) title.append(make("em", "", "context"));
  const bar = make("span", "san-share");
  const fill = make("i");
  fill.style.width = Math.max(0.5, 100 * share) + "%";
  if (color) fill.style.background = color;
  bar.append(fill);
  const area = make("span", "san-area", share ? percent(share) : "not found");
  const mean = make("span", "san-score", score == null || !share ? "–" : score.toFixed(2));
  button.append(swatch, title, bar, area, mean);
  button.setAttribute(
    "aria-label",
    name + (isContext ? ", context" : "") + ", " + (share ? percent(share) + " of the picture" : "not found") +
      (score == null || !share ? "" : ", score " + score.toFixed(2))
  );
  item.append(button);
  return item;
}

function list() {
  const legend = find("legend");
  legend.replaceChildren();
  find("absent").textContent = "";
  for (const button of element.querySelectorAll(".san-files button")) button.disabled = !shown.map;
  const notes = find("notes");
  notes.replaceChildren(...(shown.notes || []).map((note) => make("li", "", note)));
  notes.hidden = !(shown.notes || []).length;
  if (!shown.map) {
    find("times").textContent = "";
    return;
  }
  const entries = shown.classes.map((each, index) => ({ ...each, index }));
  const present = entries.filter((each) => each.area > 0).sort((a, b) => b.area - a.area);
  const missing = entries.filter((each) => !each.area && !each.context);
  const listed = missing.length <= 12 ? present.concat(missing) : present;
  for (const each of listed) legend.append(row(each.index, each.name, each.color, each.area, each.score, each.context));
  if (shown.none > 0) legend.append(row(-1, NONE_NAME, null, shown.none, null, false));
  const absent = entries.length - listed.length;
  if (absent) find("absent").textContent = "and " + absent + (absent === 1 ? " class" : " classes") + " without a pixel";
  find("times").textContent =
    "picture " + duration(shown.encode_seconds) + ", once · words " + duration(shown.words_seconds);
}

// What is at a pixel: tooltip, cross, line of text, and the legend's row.
function point(at, { tip = true, marked = false } = {}) {
  const tipNode = find("tip");
  const crossNode = find("cross");
  for (const each of element.querySelectorAll(".san-class.san-here")) each.classList.remove("san-here");
  tipNode.hidden = crossNode.hidden = true;
  if (!at || !shown || !shown.map) return;
  const [x, y] = at;
  const { width, height } = shown.image;
  const index = classAt(x, y);
  const one = index < 0 ? { name: NONE_NAME, color: null, area: shown.none } : shown.classes[index];
  const left = (100 * (x + 0.5)) / width;
  const top = (100 * (y + 0.5)) / height;
  if (tip) {
    tipNode.querySelector("b").textContent = one.name;
    tipNode.querySelector("i").style.background = one.color || "";
    tipNode.style.left = left + "%";
    tipNode.style.top = top + "%";
    tipNode.classList.toggle("san-left", left > 55);
    tipNode.classList.toggle("san-above", top > 80);
    tipNode.hidden = false;
  }
  if (marked) {
    crossNode.style.left = left + "%";
    crossNode.style.top = top + "%";
    crossNode.hidden = false;
  }
  const score = one.score == null ? "" : " · score " + one.score.toFixed(2);
  find("readout").textContent = one.name + (one.context ? " (context)" : "") + " · " + percent(one.area) +
    " of the picture" + score + " · pixel " + x + ", " + y;
  const button = element.querySelector('.san-class[data-index="' + index + '"]');
  if (button) button.classList.add("san-here");
}

function hold(index) {
  held = held === index ? null : index;
  for (const each of element.querySelectorAll(".san-class"))
    each.setAttribute("aria-pressed", String(held !== null && Number(each.dataset.index) === held));
  paint();
}

function pixelOf(event) {
  const box = find("stage").getBoundingClientRect();
  const part = (value, start, length, count) =>
    Math.min(count - 1, Math.max(0, Math.floor(((value - start) / length) * count)));
  return [
    part(event.clientX, box.left, box.width, shown.image.width),
    part(event.clientY, box.top, box.height, shown.image.height),
  ];
}

function keys(event) {
  if (!shown || !shown.map) return;
  const { width, height } = shown.image;
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key in steps) {
    const step = event.shiftKey ? 1 : Math.max(1, Math.round(Math.max(width, height) / 40));
    cross = cross
      ? cross.map((value, axis) => Math.min([width, height][axis] - 1, Math.max(0, value + step * steps[event.key][axis])))
      : [Math.floor(width / 2), Math.floor(height / 2)];
    point(cross, { marked: true });
  } else if (event.key === "Enter" && cross) hold(classAt(...cross));
  else if (event.key === "Escape") {
    if (held !== null) hold(held);
    cross = null;
    point(null);
  } else return;
  event.preventDefault();
}

async function overlayFile() {
  const image = find("picture");
  await image.decode();
  const { width, height } = shown.image;
  const canvas = make("canvas");
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0, width, height);
  const opacity = slider.value / 100;
  const picture = context.getImageData(0, 0, width, height);
  for (let at = 0, data = picture.data; at < data.length; at += 4) {
    const grey = 0.2126 * data[at] + 0.7152 * data[at + 1] + 0.0722 * data[at + 2];
    for (let each = at; each < at + 3; each++) data[each] += opacity * (grey - data[each]);
  }
  context.putImageData(picture, 0, 0);
  context.globalAlpha = opacity;
  context.imageSmoothingEnabled = false;
  context.drawImage(find("colours"), 0, 0, width, height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

async function download(kind) {
  const files = shown.files;
  const blob = {
    labels: () => new Blob([bytes(files.labels)], { type: "image/png" }),
    json: () => new Blob([files.json], { type: "application/json" }),
    overlay: overlayFile,
  }[kind];
  const link = make("a");
  link.href = URL.createObjectURL(await blob());
  link.download = files.stem + { labels: "_labels.png", json: ".json", overlay: "_overlay.png" }[kind];
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

const stage = find("stage");
stage.addEventListener("pointermove", (event) => shown && shown.map && point(pixelOf(event)));
stage.addEventListener("pointerleave", () => point(cross, { marked: true }));
let touched = false; // older browsers do not say so of a click
stage.addEventListener("pointerdown", (event) => (touched = event.pointerType !== "mouse"));
stage.addEventListener("click", (event) => {
  if (!shown || !shown.map) return;
  const at = pixelOf(event);
  hold(classAt(...at));
  if (!touched) return;
  cross = at; // a finger has left by now, and what it named stays
  point(at, { marked: true });
});
stage.addEventListener("keydown", keys);
find("legend").addEventListener("click", (event) => {
  const button = event.target.closest(".san-class");
  if (button) hold(Number(button.dataset.index));
});
for (const button of element.querySelectorAll(".san-files button"))
  button.addEventListener("click", () => shown && shown.map && download(button.dataset.file));
// A proxy that serves the page in a folder which the server does not know of: Gradio's requests go past it.
const folder = (address) => new URL(address, document.baseURI).pathname.replace(/\/$/, "");
const lost = folder(".") === folder(window.gradio_config.root) ? "" :
  "This page is served under " + folder(".") + "/, which its server does not know. Whoever runs it: start it with --root-path " + folder(".");
watchGradio((reason) => fail(lost || reason));

const slider = find("opacity").querySelector("input");
function setOpacity() {
  find("colours").style.opacity = slider.value / 100;
  find("picture").style.filter = "grayscale(" + slider.value + "%)"; // or its colours would mix with the classes'
  find("opacity").querySelector("output").textContent = slider.value + " %";
}
slider.addEventListener("input", setOpacity);
const switched = find("switch").querySelector("input");
switched.addEventListener("change", () => (find("labels").hidden = !switched.checked));
setOpacity();
watch("value", receive);
receive();
