// The service as functions. What it refuses is thrown as an Error with the service's own sentence.

const TOKEN = "mnist-token";
const PATIENCE_MS = 30_000;

export async function call(path, options = {}) {
  const response = await ask(path, options);
  if (response.status === 204) return null;
  const answer = await response.json().catch(() => null);
  if (!answer) throw new Error(`Something between this page and the service answered ${response.status}.`);
  if (!response.ok) throw Object.assign(new Error(answer.error.message), { code: answer.error.code });
  return answer;
}

// The text of a page that the service has of the store.
export async function page(path) {
  const response = await ask(path);
  if (!response.ok) {
    const answer = await response.json().catch(() => null);
    throw new Error(answer?.error.message ?? `Something answered ${response.status}.`);
  }
  return response.text();
}

async function ask(path, options = {}) {
  for (let wrong = false; ; wrong = true) {
    const token = sessionStorage.getItem(TOKEN);
    const headers = { ...options.headers, ...(token && { Authorization: `Bearer ${token}` }) };
    let response;
    try {
      response = await fetch(path, { signal: AbortSignal.timeout(PATIENCE_MS), ...options, headers });
    } catch {
      throw new Error("The service cannot be reached. Is it running?");
    }
    if (response.status === 401) {
      await askForToken(wrong || token);
      continue;
    }
    return response;
  }
}

const send = (path, body) =>
  call(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

export const correct = (image, label, name, confirmed = false) =>
  send("corrections", { image, label, class: name, confirmed });

export const dismiss = (id) => call(`review/items/${id}`, { method: "DELETE" });

export const settle = ({ source, given, given_name, label }, ids, confirm) =>
  send("review/held", { source, given, given_name, label, ids, confirm });

export const takeBack = (id) => call(`corrections/${id}`, { method: "DELETE" });

export const percent = (share) => `${(100 * share).toFixed(1)} %`;

export const waitingText = (count) =>
  `${count} ${count === 1 ? "correction waits" : "corrections wait"} for the next training.`;

// A name in a sentence: of one or two characters it is a sign, "a 7", else a word.
export const named = (name) => (name.length > 2 ? name : `${SPOKEN_VOWEL.test(name) ? "an" : "a"} ${name}`);

const SPOKEN_VOWEL = /^(8.?|11|18|[aefhilmnorsx])$/i;

const MOST_BUTTONS = 20;

// A button for each class, or one list of many classes; `chosen` is called with a label.
export function classChoice(place, names, chosen) {
  if (names.length > MOST_BUTTONS) {
    const list = document.createElement("select");
    list.setAttribute("aria-label", "The right class");
    list.append(new Option("Choose the class …", ""), ...names.map((name, label) => new Option(name, label)));
    list.addEventListener("change", () => {
      if (list.value !== "") chosen(Number(list.value));
      list.value = ""; // so that the same class can be chosen again
    });
    place.replaceChildren(list);
    return;
  }
  const buttons = names.map((name, label) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.setAttribute("aria-label", `It is ${named(name)}`);
    button.addEventListener("click", () => chosen(label));
    return button;
  });
  place.replaceChildren(...buttons);
}

// Rows of values 0..255, or of three of them, on a canvas that takes their size.
export function showPixels(canvas, rows) {
  const context = canvas.getContext("2d");
  if (!rows) return context.clearRect(0, 0, canvas.width, canvas.height);
  [canvas.width, canvas.height] = [rows[0].length, rows.length];
  const pixels = context.createImageData(canvas.width, canvas.height);
  rows.flat().forEach((value, i) => {
    const colour = Array.isArray(value) ? value : [value, value, value];
    pixels.data.set([...colour, 255], 4 * i);
  });
  context.putImageData(pixels, 0, 0);
}

let asking = null;

function askForToken(wasWrong) {
  asking ??= new Promise((resolve) => {
    const dialog = document.createElement("dialog");
    dialog.setAttribute("aria-label", "Token");
    const form = document.createElement("form");
    form.method = "dialog";
    const label = document.createElement("label");
    label.textContent = `${wasWrong ? "That token was not accepted. " : ""}This service asks for its token (SERVE_TOKEN)`;
    const input = document.createElement("input");
    input.type = "password";
    input.required = true;
    input.autocomplete = "off";
    input.pattern = "[!-~]+";
    input.title = "letters, numbers and signs, no spaces";
    const send = document.createElement("button");
    send.textContent = "Use it";
    label.append(input);
    form.append(label, send);
    dialog.append(form);
    dialog.addEventListener("close", () => {
      if (!input.value || !form.checkValidity()) return dialog.showModal(); // Escape: nothing works without it
      sessionStorage.setItem(TOKEN, input.value);
      dialog.remove();
      asking = null;
      resolve();
    });
    document.body.append(dialog);
    dialog.showModal();
  });
  return asking;
}
