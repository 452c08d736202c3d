// Runs the model apart from the page, so that drawing stays smooth meanwhile.

import * as ort from "./ort.js";

// Threads need cross-origin isolation, two headers that a static site cannot set.
ort.env.wasm.numThreads = 1;

/** A file as bytes; one that begins as gzip does is unpacked, since most static servers send files as they are. */
async function bytes(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: HTTP status ${response.status}`);
  const data = new Uint8Array(await response.arrayBuffer());
  if (data[0] !== 0x1f || data[1] !== 0x8b) return data;
  const stream = new Blob([data]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

let session;

async function load({ runtime, model }) {
  const [wasm, graph] = await Promise.all([bytes(runtime), bytes(model)]);
  ort.env.wasm.wasmBinary = wasm.buffer;
  session = await ort.InferenceSession.create(graph, { executionProviders: ["wasm"], graphOptimizationLevel: "all" });
}

async function translate({ image, shape, codes, styleDim }) {
  const feeds = { image: new ort.Tensor("float32", image, shape) };
  if (styleDim) feeds.style = new ort.Tensor("float32", codes, [1, codes.length / styleDim, styleDim]);
  const start = performance.now();
  const { translation } = await session.run(feeds);
  return { values: translation.data, shape: translation.dims, milliseconds: performance.now() - start };
}

addEventListener("message", async ({ data: { id, task, ...request } }) => {
  try {
    const result = await (task === "load" ? load(request) : translate(request));
    postMessage({ id, result });
  } catch (error) {
    postMessage({ id, error: String(error.message ?? error) });
  }
});
