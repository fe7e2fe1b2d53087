// The page: takes images, or another model, by drop or choice, and shows the best classes and their evidence.

import { Classifier } from "./classifier.js";

const LISTED = 5;
const SHOWN = 448; // pixels of a canvas
// Colours of evidence from none to the most, each with its opacity.
const RAMP = [
  [59, 15, 112, 0],
  [140, 41, 129, 0.45],
  [222, 73, 104, 0.6],
  [254, 159, 109, 0.7],
  [252, 253, 191, 0.75],
];

const byId = (id) => document.getElementById(id);
let classifier;
let turn = 0; // of the last image; an answer to one before it is not shown

function show(error) {
  byId("message").hidden = !error;
  byId("message").textContent = error ?? "";
}

async function openModel(bytes, name) {
  byId("model").textContent = `Loading ${name} …`;
  byId("result").hidden = true;
  classifier = undefined;
  try {
    classifier = await Classifier.open(new Uint8Array(bytes));
    const { model, img_size: size } = classifier.recipe;
    const { length: count } = classifier.classes;
    byId("model").textContent = `${model} · ${count} classes · ${size} × ${size} pixels · runs in this browser`;
    show();
  } catch (error) {
    byId("model").textContent = "There is no model.";
    show(`${name} cannot be used: ${error.message}`);
  }
}

async function classify(file) {
  const own = ++turn;
  try {
    if (!classifier) throw new Error("there is no model yet: drop a file of sanet export, such as model.onnx");
    const start = performance.now();
    const result = await classifier.classify(file);
    if (own !== turn) return;
    byId("time").textContent = `${Math.round(performance.now() - start)} ms from the file to the answer`;
    show();
    present(result);
  } catch (error) {
    if (own !== turn) return;
    byId("result").hidden = true;
    const unreadable = error.name === "InvalidStateError" || error.name === "EncodingError";
    show(`${file.name}: ${unreadable ? "this browser cannot read it as an image" : error.message}`);
  }
}

/** Show the best classes of a result, and the evidence for the first of them. */
function present({ crop, probabilities, evidence }) {
  const order = probabilities.map((_, label) => label).sort((a, b) => probabilities[b] - probabilities[a]);
  const seen = canvasOf(crop.width, crop.height, (n) => [...crop.pixels.subarray(3 * n, 3 * n + 3), 1]);
  draw("seen", seen);
  const buttons = order.slice(0, LISTED).map((label) => {
    const button = document.createElement("button");
    button.style.setProperty("--share", `${100 * probabilities[label]}%`);
    button.dataset.probability = probabilities[label];
    button.disabled = !evidence;
    const [name, share] = ["name", "share"].map((kind) => {
      const span = document.createElement("span");
      span.className = kind;
      return span;
    });
    name.textContent = classifier.classes[label];
    share.textContent = `${(100 * probabilities[label]).toFixed(1)} %`;
    button.append(name, share);
    button.onclick = () => {
      for (const each of buttons) each.setAttribute("aria-pressed", each === button);
      draw("map", seen, overlay(evidence(label)));
      byId("legend").textContent = `Evidence for ${classifier.classes[label]}`;
    };
    return button;
  });
  byId("best").replaceChildren(
    ...buttons.map((button) => {
      const item = document.createElement("li");
      item.append(button);
      return item;
    }),
  );
  byId("map").hidden = !evidence;
  if (!evidence) byId("legend").textContent = "There is no map of evidence: the last feature map has one position.";
  byId("result").hidden = false;
  if (evidence) buttons[0].click();
}

/** Return a canvas with the colours [r, g, b, opacity] of its pixels. */
function canvasOf(width, height, colour) {
  const canvas = new OffscreenCanvas(width, height);
  const image = new ImageData(width, height);
  for (let n = 0; n < width * height; n++) {
    const [r, g, b, opacity] = colour(n);
    image.data.set([r, g, b, 255 * opacity], 4 * n);
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** Return a map of evidence in colours; what speaks against the class has none. */
function overlay({ width, height, values }) {
  const most = Math.max(...values, 1e-6);
  const side = 64; // colours are mixed after the values, not the other way round
  return canvasOf(side, side, (n) => {
    const value = between(values, width, height, ((n % side) + 0.5) / side, (Math.floor(n / side) + 0.5) / side);
    const place = (Math.max(0, value) / most) * (RAMP.length - 1);
    const low = Math.min(Math.floor(place), RAMP.length - 2);
    return RAMP[low].map((a, i) => a + (place - low) * (RAMP[low + 1][i] - a));
  });
}

/** Return the value at (x, y) in [0, 1] of a map, linear between the centres of its positions. */
function between(values, width, height, x, y) {
  const axis = (share, size) => {
    const at = Math.min(Math.max(share * size - 0.5, 0), size - 1);
    const low = Math.min(Math.floor(at), Math.max(size - 2, 0));
    return [low, Math.min(low + 1, size - 1), at - low];
  };
  const [left, right, fx] = axis(x, width);
  const [top, bottom, fy] = axis(y, height);
  const row = (line) => values[line * width + left] * (1 - fx) + values[line * width + right] * fx;
  return row(top) * (1 - fy) + row(bottom) * fy;
}

function draw(id, ...layers) {
  const canvas = byId(id);
  canvas.width = canvas.height = SHOWN;
  for (const layer of layers) canvas.getContext("2d").drawImage(layer, 0, 0, SHOWN, SHOWN);
}

async function take(file) {
  if (!file) return;
  if (file.name.endsWith(".onnx")) await openModel(await file.arrayBuffer(), file.name);
  else await classify(file);
}

byId("file").onchange = async ({ target }) => {
  await take(target.files[0]);
  target.value = ""; // the same file may be chosen again
};
addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
addEventListener("dragleave", () => byId("drop").classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  take(event.dataTransfer.files[0]);
});

const answer = await fetch("model.onnx");
if (answer.ok) await openModel(await answer.arrayBuffer(), "model.onnx");
else {
  byId("model").textContent = "There is no model.onnx beside this page. Drop a file of sanet export here.";
}
