import { betweenCorners, keyedBox, nextBox } from "./box.js";
import { findBoxes, findLandmarks, openModel, rgbTensor } from "./landmarker.js";
import { eyeOpenness, mouthOpenness } from "./openness.js";
import { headPose } from "./pose.js";

const at = (id) => document.getElementById(id);
const view = at("view");
const context = view.getContext("2d", { willReadFrequently: true });
const frame = document.createElement("canvas");
const pixels = frame.getContext("2d", { willReadFrequently: true });
const scratch = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const COLORS = ["#00e5ff", "#ffd400"];
let models = [], rigid = null, detector = null, searched = 0, stream = null, busy = false, again = false, drag = null, said = -Infinity;
// Of all faces; the first is the one that is shown large and told of.
let boxes = [];

function say(text) { at("status").textContent = text; }

function take(source, width, height) {
  frame.width = view.width = width;
  frame.height = view.height = height;
  pixels.drawImage(source, 0, 0, width, height);
}

function dots(target, points, unit, color, place = (x, y) => [x, y]) {
  target.fillStyle = color;
  target.strokeStyle = "#000a";
  target.lineWidth = unit / 3;
  for (let i = 0; i < points.length; i += 2) {
    target.beginPath();
    target.arc(...place(points[i], points[i + 1]), unit, 0, 7);
    target.stroke();
    target.fill();
  }
}

function draw(found, boxes) {
  context.drawImage(frame, 0, 0);
  boxes.forEach(([x0, y0, x1, y1, roll = 0], face) => {
    context.lineWidth = Math.max(1, view.width / (face ? 600 : 300));
    context.strokeStyle = "#fff";
    context.save();
    context.translate((x0 + x1) / 2, (y0 + y1) / 2);
    context.rotate((roll * Math.PI) / 180);
    context.strokeRect((x0 - x1) / 2, (y0 - y1) / 2, x1 - x0, y1 - y0);
    context.restore();
    found.forEach(({ faces }, index) => dots(context, faces[face], Math.max(1, (x1 - x0) / 120), COLORS[index % COLORS.length]));
  });
  found.forEach(({ faces: [points] }, index) => {
    closeUp(at("faces").children[index].firstChild, boxes[0], points, COLORS[index % COLORS.length]);
  });
}

/** The first face alone, large: what one model finds, beside what the other finds. */
function closeUp(canvas, box, points, color) {
  const side = 1.3 * Math.max(box[2] - box[0], box[3] - box[1]);
  const [left, top] = [(box[0] + box[2] - side) / 2, (box[1] + box[3] - side) / 2];
  const scale = canvas.width / side;
  const face = canvas.getContext("2d");
  face.clearRect(0, 0, canvas.width, canvas.height);
  face.drawImage(frame, left, top, side, side, 0, 0, canvas.width, canvas.height);
  dots(face, points, canvas.width / 160, color, (x, y) => [(x - left) * scale, (y - top) * scale]);
}

function addFace({ name }) {
  const figure = document.createElement("figure");
  const canvas = Object.assign(document.createElement("canvas"), { width: 480, height: 480 });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `The face, with the landmarks of ${name}`);
  figure.append(canvas, Object.assign(document.createElement("figcaption"), { textContent: name }));
  at("faces").append(figure);
}

function tell(found, decode, drawn) {
  const row = ({ name, faces: [points], ms, pose }) => {
    const tr = document.createElement("tr");
    const angles = [pose.yaw, pose.pitch, pose.roll].map((x) => `${x.toFixed(0)}\u00b0`);
    const shares = [...eyeOpenness(points), mouthOpenness(points)].map((x) => x.toFixed(2));
    for (const text of [name, ...shares, ...angles, ms.toFixed(1)]) tr.insertCell().textContent = text;
    return tr;
  };
  at("rows").replaceChildren(...found.map(row));
  let text = `Time: read the picture ${decode.toFixed(1)} ms, find the faces ${searched.toFixed(1)} ms, draw ${drawn.toFixed(1)} ms.`;
  if (found.length > 1) {
    const [a, b] = found.map(({ faces: [points] }) => points);
    let sum = 0;
    for (let i = 0; i < a.length; i += 2) sum += Math.hypot(a[i] - b[i], a[i + 1] - b[i + 1]);
    text += ` Mean distance between the first two models: ${(sum / (a.length / 2)).toFixed(2)} px.`;
  }
  at("stages").textContent = text;
  if (performance.now() - said > 2000) {
    said = performance.now();
    const { yaw, pitch, roll } = found[0].pose;
    const count = boxes.length > 1 ? `${boxes.length} faces; of the one in the thick box (click another)` : "1 face";
    say(`${count}: yaw ${yaw.toFixed(0)}, pitch ${pitch.toFixed(0)}, roll ${roll.toFixed(0)} degrees.`);
  }
}

/**
 * Find the landmarks of all boxes and draw them; without `aloud`, as in a first run, times are not shown. With `follow`,
 * the next crops are tight around what was found, and upright.
 */
async function look(aloud = true, follow = Boolean(stream)) {
  if (!boxes.length || !frame.width) return;
  if (busy) { again = true; return; }
  busy = true;
  try {
    do {
      again = false;
      const start = performance.now();
      const image = rgbTensor(pixels.getImageData(0, 0, frame.width, frame.height));
      const decode = performance.now() - start;
      const found = [], looked = boxes;
      const { width, height } = frame;
      for (const { name, session } of models) {
        const from = performance.now();
        const faces = await findLandmarks(session, image, looked);
        found.push({ name, faces, ms: performance.now() - from, pose: headPose(faces[0], width, height, rigid) });
      }
      const from = performance.now();
      draw(found, looked);
      if (aloud) {
        tell(found, decode, performance.now() - from);
        globalThis.found = { boxes: looked, landmarks: found.map(({ faces }) => faces.map((points) => Array.from(points))) };
      }
      if (follow && boxes === looked) boxes = looked.map((box, face) => nextBox(found[0].faces[face], box));
    } while (again && !stream);
  } finally { busy = false; }
}

function stop() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  at("camera").setAttribute("aria-pressed", "false");
}

/** Boxes of all faces that the detector finds, the surest first. */
async function search() {
  const start = performance.now();
  const found = await findBoxes(detector.session, frame, scratch, detector.settings);
  searched = performance.now() - start;
  return found;
}

async function show(blob) {
  stop();
  try {
    const bitmap = await createImageBitmap(blob);
    take(bitmap, bitmap.width, bitmap.height);
  } catch { say("This file is no picture that the browser can read."); return; }
  // Twice: a network's first run on a picture of another size takes longer, and only the second is told of. Its crops
  // are those of the landmarks that the first found in the detector's boxes.
  await search();
  boxes = await search();
  await look(false, true);
  await look();
  if (!boxes.length) {
    draw([], []);
    at("rows").replaceChildren();
    at("stages").textContent = "";
    say("No face found. Draw a box around it.");
  }
}

async function camera() {
  if (stream) { stop(); return; }
  try { stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "user", width: 640 } }); }
  catch { say("The camera can't be used: allow it, or open the page over https or from localhost."); return; }
  at("camera").setAttribute("aria-pressed", "true");
  const video = Object.assign(document.createElement("video"), { srcObject: stream, muted: true, playsInline: true });
  await video.play();
  boxes = [];
  let frames = 0;
  while (stream) {
    take(video, video.videoWidth, video.videoHeight);
    // Landmarks lead from frame to frame; now and then the detector says where the faces really are.
    if (frames++ % 15 === 0 || !boxes.length) boxes = await search();
    if (!boxes.length) draw([], []);
    await look(frames > 2);
    await new Promise(requestAnimationFrame);
  }
}

const place = (event) => {
  const area = view.getBoundingClientRect();
  return [((event.clientX - area.x) * view.width) / area.width, ((event.clientY - area.y) * view.height) / area.height];
};
view.addEventListener("pointerdown", (event) => {
  drag = place(event);
  view.setPointerCapture(event.pointerId);
  const [x, y] = drag;
  const clicked = boxes.find((box) => x > box[0] && y > box[1] && x < box[2] && y < box[3]);
  if (clicked) { boxes = [clicked, ...boxes.filter((box) => box !== clicked)]; said = -Infinity; look(); }
});
view.addEventListener("pointermove", (event) => {
  if (!drag) return;
  const drawn = betweenCorners(drag, place(event));
  if (drawn[2] - drawn[0] > 8 && drawn[3] - drawn[1] > 8) { boxes = [drawn]; look(); }
});
for (const end of ["pointerup", "pointercancel"]) view.addEventListener(end, () => { drag = null; });
view.addEventListener("keydown", (event) => {
  const moved = boxes.length && keyedBox(boxes[0], event.key, event.shiftKey, Math.max(2, view.width / 100));
  if (moved) { event.preventDefault(); boxes = [moved, ...boxes.slice(1)]; look(); }
});
at("file").addEventListener("change", ({ target }) => target.files[0] && show(target.files[0]));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => { event.preventDefault(); if (event.dataTransfer.files[0]) show(event.dataTransfer.files[0]); });
at("camera").addEventListener("click", camera);

try {
  const demo = await (await fetch("demo.json")).json();
  const portrait = async () => show(await (await fetch("portrait.jpg")).blob());
  rigid = demo.pose;
  detector = { session: await openModel(demo.detector.file), settings: demo.detector };
  for (const { name, file } of demo.models) {
    models.push({ name, session: await openModel(file) });
    addFace({ name });
  }
  at("portrait").addEventListener("click", portrait);
  await portrait();
} catch (error) { say(`The demo can't start: ${error.message}`); }
