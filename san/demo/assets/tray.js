// Pictures in: a file, a drop, a paste, an example. An upload goes to the server's own door (san/demo/guard.py), which
// answers with a name that only this page knows; Gradio is then told that name: trigger('upload', ...).
const tray = JSON.parse(props.value);
const input = element.querySelector("input");
const drop = element.querySelector(".san-drop");
const state = element.querySelector(".san-upload");
const TYPES = /^image\//;

element.querySelector("#san-hint").textContent = tray.hint;
tray.examples.forEach((each, index) => {
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
    trigger('pick', { index });
  });
  element.querySelector(".san-examples").append(button);
});

function say(text, isError = false) {
  state.textContent = text;
  state.classList.toggle("san-error", isError);
}

async function send(file) {
  say("Sending " + file.name + " …");
  try {
    const answer = await fetch(new URL("san/image", document.baseURI), { method: "POST", body: file });
    const content = await answer.json();
    if (!answer.ok) throw new Error(content.detail);
    say(file.name);
    trigger('upload', { token: content.token, title: file.name });
  } catch (error) {
    say(error instanceof TypeError ? "The server does not answer, or the file is too large (" + tray.hint + ")." : error.message, true);
  }
}

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
