// End-to-end graphs and the face detector in onnxruntime-web.
import { bgrPlanes, decode, landmarkBox, letterbox } from "./detector.js";
import * as ort from "./ort.wasm.bundle.min.mjs";

ort.env.wasm.wasmPaths = { wasm: new URL("./ort-wasm-simd-threaded.wasm", import.meta.url).href };
ort.env.wasm.numThreads = 1;

export const openModel = (file) => ort.InferenceSession.create(new URL(file, import.meta.url).href);

export function rgbTensor({ data, width, height }) {
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; to < rgb.length; from += 4) {
    rgb[to++] = data[from];
    rgb[to++] = data[from + 1];
    rgb[to++] = data[from + 2];
  }
  return new ort.Tensor("uint8", rgb, [height, width, 3]);
}

/** Landmarks in each box (see box.js): x, y of 98 points. */
export async function findLandmarks(session, image, boxes) {
  // A graph's fifth column is a detector's score, which it ignores; the sixth is the roll.
  const rows = boxes.flatMap(([x0, y0, x1, y1, roll = 0]) => [x0, y0, x1, y1, 1, roll]);
  const given = new ort.Tensor("float32", Float32Array.from(rows), [boxes.length, 6]);
  const { data } = (await session.run({ image, boxes: given })).landmarks;
  return boxes.map((_, i) => data.slice((i * data.length) / boxes.length, ((i + 1) * data.length) / boxes.length));
}

/** Landmark boxes of the faces in a canvas, the surest first. `scratch` is a 2-D context of a canvas that may be resized. */
export async function findBoxes(session, source, scratch, settings) {
  const { inner, canvas } = letterbox(source.width, source.height, settings);
  [scratch.canvas.width, scratch.canvas.height] = canvas;
  scratch.fillStyle = "#000";
  scratch.fillRect(0, 0, ...canvas);
  scratch.drawImage(source, 0, 0, ...inner);
  const { dtype, map } = settings;
  const planes = bgrPlanes(scratch.getImageData(0, 0, ...canvas), dtype === "uint8" ? Uint8Array : Float32Array);
  const input = new ort.Tensor(dtype, planes, [1, 3, canvas[1], canvas[0]]);
  const found = decode(await session.run({ [session.inputNames[0]]: input }), canvas, settings);
  const scale = [source.width / inner[0], source.height / inner[1]];
  return found.map((box) => landmarkBox(box.slice(0, 4).map((value, index) => value * scale[index % 2]), map));
}
