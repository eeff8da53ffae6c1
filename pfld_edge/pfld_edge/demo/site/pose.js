// Head pose: perspective-n-point of rigid points, as pfld_edge_runtime.reading.head_pose has it. The shape comes with the
// page (demo.json), so there is one copy of it.

const dot = (a, b) => a.reduce((sum, value, index) => sum + value * b[index], 0);
const cross = ([a, b, c], [d, e, f]) => [b * f - c * e, c * d - a * f, a * e - b * d];
const times = (matrix, vector) => matrix.map((row) => dot(row, vector));
const product = (a, b) => a.map((row) => b[0].map((_, j) => row.reduce((sum, value, k) => sum + value * b[k][j], 0)));

/** Solve a small linear system by elimination with pivots. */
export function solve(matrix, right) {
  const rows = matrix.map((row, i) => [...row, right[i]]);
  for (let i = 0; i < rows.length; i++) {
    let best = i;
    for (let j = i + 1; j < rows.length; j++) if (Math.abs(rows[j][i]) > Math.abs(rows[best][i])) best = j;
    [rows[i], rows[best]] = [rows[best], rows[i]];
    for (let j = i + 1; j < rows.length; j++) {
      const share = rows[j][i] / rows[i][i];
      for (let k = i; k <= rows.length; k++) rows[j][k] -= share * rows[i][k];
    }
  }
  const found = new Array(rows.length).fill(0);
  for (let i = rows.length - 1; i >= 0; i--) {
    let rest = rows[i][rows.length];
    for (let k = i + 1; k < rows.length; k++) rest -= rows[i][k] * found[k];
    found[i] = rest / rows[i][i];
  }
  return found;
}

/** Rodrigues' formula. */
function turn([x, y, z]) {
  const angle = Math.hypot(x, y, z);
  const sine = angle > 1e-8 ? Math.sin(angle) / angle : 1;
  const half = angle > 1e-8 ? (1 - Math.cos(angle)) / angle ** 2 : 0.5;
  const k = [[0, -z, y], [z, 0, -x], [-y, x, 0]];
  const kk = product(k, k);
  return k.map((row, i) => row.map((value, j) => (i === j ? 1 : 0) + sine * value + half * kk[i][j]));
}

function errorsOf(points, shape, rotation, place, focal) {
  const errors = [];
  for (let i = 0; i < shape.length; i++) {
    const [x, y, z] = times(rotation, shape[i]).map((value, axis) => value + place[axis]);
    if (!(z > 0)) return [[], Infinity];
    errors.push((focal * x) / z - points[i][0], (focal * y) / z - points[i][1]);
  }
  return [errors, dot(errors, errors)];
}

/** Yaw, pitch and roll in degrees of 98 landmarks (x, y in turn); NaN where they have no extent. */
export function headPose(landmarks, width, height, { points: chosen, shape }) {
  const focal = width;
  const points = chosen.map((index) => [landmarks[2 * index] - width / 2, landmarks[2 * index + 1] - height / 2]);
  let spread = 0;
  let size = 0;
  const middle = [0, 1].map((axis) => points.reduce((sum, point) => sum + point[axis], 0) / points.length);
  for (let i = 0; i < points.length; i++) {
    spread += (points[i][0] - middle[0]) ** 2 + (points[i][1] - middle[1]) ** 2;
    size += shape[i][0] ** 2 + shape[i][1] ** 2;
  }
  if (!(spread > 1e-12)) return { yaw: NaN, pitch: NaN, roll: NaN };
  // Start upright in the right place; a face that leans starts turned by its eyes' line (outer corners, 60 and 72).
  const lean = Math.atan2(landmarks[145] - landmarks[121], landmarks[144] - landmarks[120]);
  const depth = focal * Math.sqrt(size / spread);
  let rotation = turn([0, 0, lean]);
  let place = [(middle[0] * depth) / focal, (middle[1] * depth) / focal, depth];
  let [errors, cost] = errorsOf(points, shape, rotation, place, focal);
  let damping = 1e-3;
  for (let step = 0; step < 100; step++) {
    const normal = Array.from({ length: 6 }, () => new Array(6).fill(0));
    const gradient = new Array(6).fill(0);
    shape.forEach((corner, index) => {
      const turned = times(rotation, corner);
      const [x, y, z] = turned.map((value, axis) => value + place[axis]);
      [[focal / z, 0, (-focal * x) / z ** 2], [0, focal / z, (-focal * y) / z ** 2]].forEach((byPlace, axis) => {
        const row = [...cross(turned, byPlace), ...byPlace];
        for (let i = 0; i < 6; i++) {
          gradient[i] += row[i] * errors[2 * index + axis];
          for (let j = 0; j < 6; j++) normal[i][j] += row[i] * row[j];
        }
      });
    });
    for (let i = 0; i < 6; i++) normal[i][i] += normal[i][i] * damping + 1e-12;
    const move = solve(normal, gradient).map((value) => -value);
    const moved = product(turn(move.slice(0, 3)), rotation);
    const shifted = place.map((value, axis) => value + move[3 + axis]);
    const [newErrors, newCost] = errorsOf(points, shape, moved, shifted, focal);
    const better = newCost < cost;
    if (better) [rotation, place, errors, cost] = [moved, shifted, newErrors, newCost];
    damping = Math.min(1e12, Math.max(1e-12, better ? damping / 10 : damping * 10));
    if (Math.max(...move.slice(0, 3).map(Math.abs)) < 1e-9) break;
  }
  const degrees = 180 / Math.PI;
  return {
    yaw: Math.asin(Math.min(1, Math.max(-1, rotation[2][0]))) * degrees,
    pitch: -Math.atan2(rotation[2][1], rotation[2][2]) * degrees,
    roll: Math.atan2(rotation[1][0], rotation[0][0]) * degrees,
  };
}
