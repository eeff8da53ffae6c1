// Boxes are x0, y0, x1, y1 in pixels of the picture, of the face as it stands upright, and the roll in degrees if it leans.
// The next crop of a face is that of pfld_edge_runtime.geometry.roll: `face_roll`, `follow_roll`, `turned_box`.

const UPRIGHT = 20;
const coordinates = (points, axis) => points.filter((_, index) => index % 2 === axis);
const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

function turn([x, y], [centerX, centerY], roll) {
  const [cosine, sine] = [Math.cos((roll * Math.PI) / 180), Math.sin((roll * Math.PI) / 180)];
  const [right, down] = [x - centerX, y - centerY];
  return [centerX + cosine * right - sine * down, centerY + sine * right + cosine * down];
}

/** By how many degrees 98 landmarks lean: from eye to eye, and from the eyes to the mouth; NaN where they are no face. */
function faceRoll(points) {
  const [left, right, mouth] = [[60, 68], [68, 76], [76, 88]].map(([from, to]) =>
    [0, 1].map((axis) => mean(coordinates(points.slice(2 * from, 2 * to), axis))));
  const [acrossX, acrossY] = [0, 1].map((axis) => right[axis] - left[axis]);
  const [downX, downY] = [0, 1].map((axis) => mouth[axis] - (left[axis] + right[axis]) / 2);
  const [x, y] = [acrossX + downY, acrossY - downX];
  const size = Math.max(...[0, 1].map((axis) => Math.max(...coordinates(points, axis)) - Math.min(...coordinates(points, axis))));
  return Math.hypot(x, y) >= 0.4 * size ? (Math.atan2(y, x) * 180) / Math.PI : NaN;
}

/** The box of a face's next crop, from its 98 landmarks and its last box; the last box where they have no extent. */
export function nextBox(points, last) {
  points = Array.from(points);
  const found = faceRoll(points);
  let roll = last[4] ?? 0;
  // A comparison with NaN is false: such faces keep their roll.
  if (Math.abs(((found - roll + 540) % 360) - 180) > UPRIGHT) roll = found;
  const pivot = [0, 1].map((axis) => mean(coordinates(points, axis)));
  const upright = roll ? points.flatMap((_, i) => (i % 2 ? [] : turn([points[i], points[i + 1]], pivot, -roll))) : points;
  const [x, y] = [0, 1].map((axis) => coordinates(upright, axis));
  const box = [...[x, y].map((all) => Math.trunc(Math.min(...all))), ...[x, y].map((all) => Math.trunc(Math.max(...all)) + 1)];
  if (!box.every(Number.isFinite)) return last;
  if (!roll) return box;
  const center = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2];
  const moved = turn(center, pivot, roll).map((value, axis) => Math.round(value - center[axis]));
  return [...box.map((value, side) => value + moved[side % 2]), roll];
}

export function betweenCorners(a, b) {
  return [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
}

/** Arrow keys move by a step, with Shift they resize about the centre; null for other keys. */
export function keyedBox([x0, y0, x1, y1], key, shift, step) {
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key] ?? [0, 0];
  if (!dx && !dy) return null;
  if (!shift) return [x0 + dx * step, y0 + dy * step, x1 + dx * step, y1 + dy * step];
  const box = [x0 - dx * step, y0 + dy * step, x1 + dx * step, y1 - dy * step];
  return box[2] - box[0] > 8 && box[3] - box[1] > 8 ? box : null;
}
