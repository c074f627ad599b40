import { call, classChoice, correct, dismiss, named, percent, settle, showPixels, takeBack, waitingText } from "./api.js";

const element = (id) => document.getElementById(id);
const KEYS = 10; // one figure each
const KIND = ["reason", "source", "given", "given_name", "label"];
const MOST_IDS = 1000; // that the service takes at a time
let items = [];
let names = []; // of the classes
let done = []; // [item, id of its correction, or null if it was skipped]
let busy = false;
let off = ""; // the sentence of a service on which nobody looks

const SENTENCES = {
  held: (said, sure, given) => `Somebody says it is ${given}, the model says ${said} (${sure}). This label is not used for training until somebody confirms it.`,
  contradiction: (said, sure, given) => `Somebody says it is ${given}, the model says ${said} (${sure}). This label is used for training unless you correct it.`,
  improbable: (said, sure, given) => `In the training data it is ${given}, but it looks like ${said} (${sure}). Your answer replaces that label.`,
  unlike: (said, sure) => `It does not look like any of the classes; the likeliest is ${said} (${sure}).`,
  unsure: (said, sure) => `The model says ${said}, ${sure} sure.`,
};

function sentence(item) {
  const said = named(item.class_name ?? names[item.label]);
  return SENTENCES[item.reason](said, percent(item.confidence), named(item.given_name ?? ""));
}

// The labels that wait with the first one: of its kind, from its source.
const group = () =>
  items[0]?.reason === "held"
    ? items.filter((item) => KIND.every((key) => item[key] === items[0][key]))
    : [];

function showGroup() {
  const alike = group();
  element("group").hidden = !alike.length;
  if (!alike.length) return element("waiting-images").replaceChildren();
  const given = named(alike[0].given_name);
  element("alike").textContent =
    `One sender labelled ${alike.length === 1 ? "this picture" : `these ${alike.length} pictures`} as ${given}. ` +
    (alike.length === 1 ? "" : "Label or skip the wrong ones above, then confirm the rest.");
  const all = { 1: "It is", 2: "Both are" }[alike.length] ?? `All ${alike.length} are`;
  element("confirm").textContent = `${all} ${given}`;
  element("forget").textContent = alike.length === 1 ? "Forget this label" : "Forget these labels";
  element("waiting-images").replaceChildren(...alike.map((item) => {
    const canvas = document.createElement("canvas");
    canvas.className = "pixels";
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `Called ${given}`);
    showPixels(canvas, item.image);
    const entry = document.createElement("li");
    entry.append(canvas);
    return entry;
  }));
}

function show() {
  const [item] = items;
  showGroup();
  for (const name of ["choices", "skip", "none"]) element(name).disabled = !item;
  element("undo").disabled = !done.length;
  showPixels(element("image"), item?.image);
  element("guess").textContent = item
    ? `${sentence(item)} ${items.length} to go.`
    : off || "Nothing to review: no image is left to be looked at.";
}

// One at a time: a fast hand must not label the next image with this one's key.
async function once(act) {
  if (busy) return;
  busy = true;
  try {
    await act();
  } catch (error) {
    if (error.code === "review_off") off = `${error.message[0].toUpperCase()}${error.message.slice(1)}.`;
    else element("stored").textContent = error.message;
  } finally {
    busy = false;
    show();
  }
}

const hasKeys = () => names.length <= KEYS;

const label = (number) =>
  once(async () => {
    if (!items.length) return;
    const { id, waiting } = await correct(items[0].image, number, names[number], true);
    done.push([items.shift(), id]);
    element("stored").textContent = `Stored as ${named(names[number])}.`;
    element("waiting").textContent = waitingText(waiting);
  });

const skip = () =>
  once(() => {
    if (items.length) done.push([items.shift(), null]);
    element("stored").textContent = "Skipped.";
  });

const none = () =>
  once(async () => {
    if (!items.length) return;
    await dismiss(items[0].id);
    items.shift();
    done = [];
    element("stored").textContent = "It is shown no more.";
  });

const settleGroup = (confirm) =>
  once(async () => {
    const ids = group().slice(0, MOST_IDS).map((item) => item.id);
    const { settled, waiting } = await settle(items[0], ids, confirm);
    items = (await call("review/items")).filter((item) => !done.some(([seen]) => seen.id === item.id));
    element("stored").textContent = `${settled} ${settled === 1 ? "label" : "labels"} ${confirm ? "confirmed" : "forgotten"}.`;
    element("waiting").textContent = waitingText(waiting);
    done = []; // what was done before cannot be undone in its order any more
  });

const undo = () =>
  once(async () => {
    if (!done.length) return;
    const [item, id] = done.at(-1);
    // The label that somebody had given, which is looked at as when it first came.
    if (id && item.reason === "contradiction") await correct(item.image, names.indexOf(item.given_name), item.given_name);
    else if (id) await takeBack(id).catch((error) => { if (error.code !== "unknown_correction") throw error; });
    done.pop();
    items.unshift(item);
    element("stored").textContent = "Taken back.";
    await showWaiting();
  });

async function showWaiting() {
  const { enabled, waiting } = await call("corrections");
  element("waiting").textContent = enabled ? waitingText(waiting) : "Corrections are switched off (FEEDBACK=off).";
}

element("confirm").addEventListener("click", () => settleGroup(true));
element("forget").addEventListener("click", () => settleGroup(false));
element("skip").addEventListener("click", skip);
element("none").addEventListener("click", none);
element("undo").addEventListener("click", undo);
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.target.closest?.("dialog, select")) return; // they have keys of their own
  if (hasKeys() && /^[0-9]$/.test(event.key) && Number(event.key) < names.length) label(Number(event.key));
  else if (event.key.toLowerCase() === "s") skip();
  else if (event.key.toLowerCase() === "n") none();
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
