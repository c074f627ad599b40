import { call, classChoice, correct, named, percent, showPixels, takeBack, waitingText } from "./api.js";

const element = (id) => document.getElementById(id);
const KEYS = 10; // one figure each
let items = [];
let names = []; // of the classes
let done = []; // [item, id of its correction, or null if it was skipped]
let busy = false;

function show() {
  const [item] = items;
  element("choices").disabled = element("skip").disabled = !item;
  element("undo").disabled = !done.length;
  showPixels(element("image"), item?.image);
  element("guess").textContent = item
    ? `The model says ${item.class_name ?? names[item.label]}, ${percent(item.confidence)} sure. ${items.length} to go.`
    : "Nothing to review: no unsure prediction is left.";
}

// One at a time: a fast hand must not label the next image with this one's key.
async function once(act) {
  if (busy) return;
  busy = true;
  try {
    await act();
  } catch (error) {
    element("stored").textContent = error.message;
  } finally {
    busy = false;
    show();
  }
}

const hasKeys = () => names.length <= KEYS;

const label = (number) =>
  once(async () => {
    if (!items.length) return;
    const { id, waiting } = await correct(items[0].image, number, names[number]);
    done.push([items.shift(), id]);
    element("stored").textContent = `Stored as ${named(names[number])}.`;
    element("waiting").textContent = waitingText(waiting);
  });

const skip = () =>
  once(() => {
    if (items.length) done.push([items.shift(), null]);
    element("stored").textContent = "Skipped.";
  });

const undo = () =>
  once(async () => {
    if (!done.length) return;
    const [item, id] = done.at(-1);
    if (id) await takeBack(id).catch((error) => { if (error.code !== "unknown_correction") throw error; });
    done.pop();
    items.unshift(item);
    element("stored").textContent = "Taken back.";
    await showWaiting();
  });

async function showWaiting() {
  const { enabled, waiting } = await call("corrections");
  element("waiting").textContent = enabled ? waitingText(waiting) : "Corrections are switched off (FEEDBACK=off).";
}

element("skip").addEventListener("click", skip);
element("undo").addEventListener("click", undo);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.closest?.("dialog, select")) return; // they have keys of their own
  if (hasKeys() && /^[0-9]$/.test(event.key) && Number(event.key) < names.length) label(Number(event.key));
  else if (event.key.toLowerCase() === "s") skip();
  else if (event.key.toLowerCase() === "u") undo();
});
once(async () => {
  items = await call("review/items");
  if (items.length) {
    names = (await call("model")).class_names;
    classChoice(element("labels"), names, label);
    if (hasKeys()) element("keys").textContent = `(keys 0 to ${names.length - 1})`;
  }
  await showWaiting();
});
