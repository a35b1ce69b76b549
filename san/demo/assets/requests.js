// Requests to the server's own doors (san/demo/guard.py), and the message when one fails.
const UNREACHABLE = "The server does not answer. Check your connection, wait a moment and try again.";

async function reasonOf(answer) {
  const content = await answer.json().catch(() => ({})); // a proxy in between answers in its own way
  if (typeof content.detail === "string") return content.detail;
  if (answer.status === 413) return "The file is too large for the server; choose a smaller one.";
  return "The server could not answer (HTTP " + answer.status + "). Wait a moment and try again; if it stays so, tell whoever runs it.";
}

async function ask(path, options) {
  const answer = await fetch(new URL(path, document.baseURI), options).catch(() => null);
  if (!answer) throw new Error(UNREACHABLE);
  if (!answer.ok) throw new Error(await reasonOf(answer));
  return answer.json().catch(() => {
    throw new Error(UNREACHABLE); // it broke off
  });
}

// The server's messages are halves of sentences, as Python's errors are.
const sentence = (text) => text && text[0].toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? "" : ".");

// A request of Gradio's that failed: its own notes on it are about its insides (page.css hides them), and after some it
// waits for a reload. So `fail(reason)` shows a message, and Gradio ends the event.
const OVER = 'data: {"msg": "unexpected_error", "success": false}\n\ndata: {"msg": "close_stream"}\n\n';

function watchGradio(fail) {
  const send = window.fetch;
  const whole = (stream) => {
    const reader = stream.getReader();
    let text = "";
    return new ReadableStream({
      async pull(controller) {
        const { done, value } = await reader.read().catch(() => ({ done: true }));
        if (!done) {
          text += new TextDecoder().decode(value);
          controller.enqueue(value);
          return;
        }
        if (!text.includes("close_stream")) {
          fail(UNREACHABLE);
          controller.enqueue(new TextEncoder().encode(OVER));
        }
        controller.close();
      },
    });
  };
  window.fetch = async (...given) => {
    const [, kind] = /\/gradio_api\/queue\/(join|data)/.exec(given[0].url || given[0]) || [];
    if (!kind) return send(...given);
    const answer = await send(...given).catch(() => null);
    if (answer && answer.ok) return kind === "join" ? answer : new Response(whole(answer.body), answer);
    fail(answer ? await reasonOf(answer) : UNREACHABLE);
    return kind === "join" ? new Response("{}", { status: 503 }) : new Response(OVER);
  };
}

