// Usage: node find_landmarks.mjs MODULE REQUEST.json
// Runs the functions of docs/end-to-end-graph.md (MODULE) on raw pixels and prints what they found as JSON.
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [module, request] = process.argv.slice(2);
const { openLandmarker, findLandmarks } = await import(pathToFileURL(module).href);
const { models, images } = JSON.parse(readFileSync(request, "utf8"));

const found = images.map(() => []);
for (const model of models) {
  const session = await openLandmarker(new Uint8Array(readFileSync(model)));
  for (const [place, { pixels, width, height, boxes }] of images.entries()) {
    const image = { data: new Uint8ClampedArray(readFileSync(pixels)), width, height };
    found[place].push(Array.from(await findLandmarks(session, image, boxes)));
  }
}
console.log(JSON.stringify(found));
