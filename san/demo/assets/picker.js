// Pictures in: a file, a drop, a paste, an example. An upload goes to the server's own door, which answers with a name
// that only this page knows; Gradio then gets that name: trigger('upload', ...).
const picker = JSON.parse(props.value);
const input = element.querySelector("input");
const drop = element.querySelector(".san-drop");
const state = element.querySelector(".san-upload");
const TYPES = /^image\//;
let pending = ""; // what to say of the picture under way, once it is shown

element.querySelector("#san-hint").textContent = picker.hint;
picker.examples.forEach((each, index) => {
  const button = document.createElement("button");
  button.type = "button";
  button.title = each.title;
  button.setAttribute("aria-label", "Example: " + each.title);
  const image = document.createElement("img");
  image.src = each.src;
  image.alt = "";
  button.append(image);
  button.addEventListener("click", () => {
    say("");
    pending = "";
    trigger('pick', { index });
  });
  element.querySelector(".san-examples").append(button);
});

function say(text, isError = false) {
  state.textContent = text;
  state.classList.toggle("san-error", isError);
}

// What is larger than the server takes, as phones' photos are, is drawn smaller here: upright, as JPEG. What the browser
// cannot read is sent as it is, and the server says what is wrong with it.
async function fitted(file) {
  const image = new Image();
  image.src = URL.createObjectURL(file);
  try {
    await image.decode();
    const { naturalWidth: width, naturalHeight: height } = image;
    const scale = Math.min(1, Math.sqrt(picker.max_pixels / (width * height)));
    if (scale === 1 && file.size <= picker.max_bytes) return { content: file, note: file.name };
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.floor(width * scale));
    canvas.height = Math.max(1, Math.floor(height * scale));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.fillStyle = "white"; // JPEG knows no transparency
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(image, 0, 0, canvas.width, canvas.height);
    const content = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
    const sizes = width + " × " + height + " pixels, shrunk to " + canvas.width + " × " + canvas.height;
    return content ? { content, note: file.name + " · " + sizes } : { content: file, note: file.name };
  } catch {
    return { content: file, note: file.name };
  } finally {
    URL.revokeObjectURL(image.src);
  }
}

async function send(file) {
  say("Sending " + file.name + " …");
  try {
    const { content, note } = await fitted(file);
    if (content.size > picker.max_bytes)
      throw new Error("The file has " + (content.size / 1e6).toFixed(1) + " MB, the limit here is " +
        (picker.max_bytes / 1e6).toFixed(1) + " MB. Shrink it.");
    const { token } = await ask("san/image", { method: "POST", body: content });
    say("Segmenting " + file.name + " …");
    pending = note;
    trigger('upload', { token, title: file.name });
  } catch (error) {
    say(file.name + " was not taken. " + sentence(error.message), true);
  }
}

// from the viewer
for (const [kind, text] of [["san-shown", () => pending], ["san-failed", () => ""]])
  document.addEventListener(kind, () => {
    if (pending) say(text());
    pending = "";
  });

input.addEventListener("change", () => {
  if (input.files.length) send(input.files[0]);
  input.value = ""; // the same file may be chosen again
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"])
  drop.addEventListener(kind, (event) => {
    event.preventDefault();
    drop.classList.toggle("san-over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) send(event.dataTransfer.files[0]);
  });
document.addEventListener("paste", (event) => {
  const file = Array.from((event.clipboardData || {}).files || []).find((each) => TYPES.test(each.type));
  if (!file) return; // text goes where it was meant to
  event.preventDefault();
  send(file);
});
