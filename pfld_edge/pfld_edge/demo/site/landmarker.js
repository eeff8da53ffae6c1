// End-to-end graphs in onnxruntime-web.
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

/** Landmarks in one box: x, y of 98 points. */
export async function findLandmarks(session, image, box) {
  const boxes = new ort.Tensor("float32", Float32Array.from(box), [1, 4]);
  return (await session.run({ image, boxes })).landmarks.data;
}
