import { call, classChoice, correct, named, percent, showPixels, takeBack, waitingText } from "./api.js";
import { Pad } from "./pad.js";

const element = (id) => document.getElementById(id);
const MOST_BARS = 10;
const bars = []; // one a class, or of many classes, of the likeliest
let names = []; // of the classes
let dropped = null; // the image file that is shown instead of a drawing
let seen = null; // the prepared picture of the last prediction
let opened = 0;
let model = null; // the one that is deployed, as far as is known
let storing = false;
let asking = false;
let again = false;

function useTask({ class_names: classNames, pictures }) {
  const drawing = pictures === "handwriting";
  if (pad.enabled !== drawing) {
    pad.enabled = drawing;
    element("how-to-draw").hidden = !drawing;
    element("how-to-show").hidden = drawing;
    document.title = element("title").textContent = drawing ? "Draw and see" : "Show and see";
  }
  if (JSON.stringify(classNames) === JSON.stringify(names)) return;
  names = classNames;
  bars.splice(0, bars.length, ...names.slice(0, MOST_BARS).map((name) => {
    const row = document.createElement("li");
    row.innerHTML = `<span></span><div class="track"><div class="bar"></div></div><span class="share">0.0 %</span>`;
    row.firstChild.textContent = name;
    return row;
  }));
  element("bars").replaceChildren(...bars);
  element("article").hidden = Math.max(...names.map((name) => name.length)) > 2;
  classChoice(element("labels"), names, store);
}

// The labels of the bars: all in their order, or of many classes the likeliest first.
function shown(probabilities) {
  const labels = [...probabilities.keys()];
  if (labels.length <= MOST_BARS) return labels;
  return labels.sort((one, other) => probabilities[other] - probabilities[one]).slice(0, MOST_BARS);
}

const pad = new Pad(
  element("pad"),
  () => {
    dropped = null;
    opened += 1; // a file that is still being opened comes too late
    predict();
  },
  (sentence) => (element("pen").textContent = sentence),
);

// One question at a time; what changed in between is asked about next.
async function predict() {
  element("undo").disabled = element("clear").disabled = pad.isEmpty && !dropped;
  element("stored").textContent = "";
  // What is corrected is what is seen: not before the answer to the latest change.
  seen = null;
  element("correction").disabled = true;
  again = asking;
  if (asking) return;
  if (pad.isEmpty && !dropped) return reset("There is no picture yet.");
  asking = true;
  element("prediction").ariaBusy = "true";
  try {
    const image = dropped ?? (await pad.toBlob());
    const type = image.type.startsWith("image/") ? image.type : "application/octet-stream";
    const options = { method: "POST", headers: { "Content-Type": type }, body: image };
    const answer = await call("predict?probabilities=true&prepared=true&review=false", options);
    if (answer.model !== model) await showModel();
    show(answer, !again);
  } catch (error) {
    reset(error.message);
  } finally {
    asking = false;
    element("prediction").ariaBusy = String(again);
    if (again) predict();
  }
}

function show({ predictions: [prediction] }, isLatest) {
  const name = names[prediction.label];
  element("label").textContent = name;
  element("label").classList.toggle("word", name.length > 2);
  const strange = prediction.unlike_training_data;
  element("label").classList.toggle("unsure", prediction.needs_review || Boolean(strange));
  shown(prediction.probabilities).forEach((label, position) => {
    const [row, share] = [bars[position], prediction.probabilities[label]];
    row.firstChild.textContent = names[label];
    row.querySelector(".bar").style.transform = `scaleX(${share})`;
    row.querySelector(".share").textContent = percent(share);
    row.classList.toggle("best", label === prediction.label);
  });
  showPixels(element("prepared"), prediction.prepared);
  const doubt = prediction.needs_review ? "Not sure, perhaps" : "This is";
  const said = `${named(name)} (${percent(prediction.confidence)})`;
  element("status").textContent = strange
    ? `This does not look like any of the classes; the likeliest is ${said}.`
    : `${doubt} ${said}.`;
  if (isLatest) seen = prediction.prepared;
  element("correction").disabled = !isLatest;
}

function reset(message) {
  element("label").textContent = "?";
  for (const row of bars) {
    row.querySelector(".bar").style.transform = "scaleX(0)";
    row.querySelector(".share").textContent = percent(0);
    row.classList.remove("best");
  }
  showPixels(element("prepared"), null);
  element("status").textContent = message;
}

async function store(label) {
  if (storing || !seen) return; // one at a time, so that the last word is the last
  storing = true;
  try {
    const { id, waiting, held } = await correct(seen, label, names[label]);
    element("waiting").textContent = waitingText(waiting);
    const undo = document.createElement("button");
    undo.type = "button";
    undo.textContent = "Take it back";
    undo.addEventListener("click", () => undoStored(id));
    const kept = held ? "it waits until somebody confirms that it is" : "stored as";
    element("stored").replaceChildren(`Thank you: ${kept} ${named(names[label])}. `, undo);
  } catch (error) {
    element("stored").textContent = error.message;
  } finally {
    storing = false;
  }
}

async function undoStored(id) {
  try {
    await takeBack(id);
    element("stored").textContent = "Taken back.";
    pad.focus(); // the button that had it is gone
    await showState();
  } catch (error) {
    element("stored").textContent = error.message;
  }
}

async function open(file) {
  if (!file) return;
  const mine = ++opened;
  const bitmap = await createImageBitmap(file).catch(() => null); // the service says what is wrong with it
  if (mine !== opened) return;
  pad.show(bitmap);
  dropped = file;
  predict();
}

async function showState() {
  try {
    const { enabled, waiting } = await call("corrections");
    element("correction").hidden = !enabled;
    element("waiting").textContent = enabled ? waitingText(waiting) : "";
  } catch (error) {
    element("waiting").textContent = error.message;
  }
}

async function showModel() {
  try {
    const { test_accuracy: accuracy, deployed_at: since, ...deployed } = await call("model");
    useTask(deployed);
    const isAnother = model && model !== deployed.model;
    model = deployed.model;
    if (isAnother && !asking) predict();
    const score = accuracy === null ? "" : `, ${(100 * accuracy).toFixed(2)} % right on test images`;
    element("model").textContent = `${model}${score}, deployed ${new Date(since).toLocaleString()}`;
  } catch (error) {
    element("model").textContent = error.message;
  }
}

for (const change of ["undo", "clear"]) {
  element(change).addEventListener("click", () => {
    pad[change]();
    if (pad.isEmpty) pad.focus(); // the button is switched off
  });
}
for (const input of ["file", "camera"]) {
  element(input).addEventListener("change", (event) => {
    open(event.target.files[0]);
    event.target.value = ""; // so that the same file can be opened again
  });
}
document.addEventListener("paste", (event) => open(event.clipboardData.files[0]));
for (const [name, over] of [["dragover", true], ["dragleave", false], ["drop", false]]) {
  document.addEventListener(name, (event) => {
    event.preventDefault();
    element("pad").classList.toggle("dropping", over);
    if (name === "drop") open(event.dataTransfer.files[0]);
  });
}
showModel();
showState();
setInterval(() => Promise.all([showModel(), showState()]), 10_000);
