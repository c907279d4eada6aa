// Columns of whole numbers, as smc_ml.charts.packed writes them.

async function unpack(text) {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const planes = new Uint8Array(await new Response(stream).arrayBuffer()), n = planes.length >> 2;
  const numbers = new Int32Array(n), second = n, third = 2 * n, fourth = 3 * n;
  for (let i = 0; i < n; i++) {
    const z = planes[i] | planes[second + i] << 8 | planes[third + i] << 16 | planes[fourth + i] << 24;
    numbers[i] = (z >>> 1) ^ -(z & 1);
  }
  return numbers;
}

async function unpackAll(columns) {
  const packed = Object.entries(columns).filter(([, text]) => typeof text === "string");
  const unpacked = await Promise.all(packed.map(([, text]) => unpack(text)));
  return Object.fromEntries(packed.map(([name], i) => [name, unpacked[i]]));
}

function sums(steps) {
  const out = new Int32Array(steps.length);
  for (let i = 0, last = 0; i < steps.length; i++) out[i] = last += steps[i];
  return out;
}

// The first place in increasing values that is not below `value`.
function searchLeft(values, value, count = values.length) {
  let low = 0, high = count;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] < value) low = middle + 1; else high = middle;
  }
  return low;
}
