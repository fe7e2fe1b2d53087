// Read from an ONNX file what its runtime does not tell: the metadata, and the classifier at its end. An ONNX file is a
// Protocol Buffers message, a list of fields, each with a number.

const MODEL = { graph: 7, metadata: 14 };
const GRAPH = { node: 1, initializer: 5, output: 12 };
const NODE = { input: 1, output: 2, type: 4, attribute: 5 };
const TENSOR = { dims: 1, type: 2, floats: 4, name: 8, raw: 9 };
const FLOAT = 1; // the type of a tensor
const KEEP_VALUES = ["Reshape", "Flatten", "Squeeze", "Identity"]; // between pooling and classifier
const AVERAGES = ["ReduceMean", "GlobalAveragePool", "AveragePool"];

const text = (bytes) => new TextDecoder().decode(bytes);

/** Return the fields of a message: [number, value] with a number, or the bytes of what is longer. */
function fieldsOf(bytes) {
  const fields = [];
  let at = 0;
  const varint = () => {
    let value = 0;
    for (let factor = 1; ; factor *= 128) {
      if (at >= bytes.length) throw new Error("this is not an ONNX file, or it is cut off");
      value += (bytes[at] & 127) * factor;
      if (bytes[at++] < 128) return value;
    }
  };
  while (at < bytes.length) {
    const key = varint();
    const [number, wire] = [Math.floor(key / 8), key % 8];
    if (wire === 0) {
      fields.push([number, varint()]);
      continue;
    }
    const length = wire === 1 ? 8 : wire === 5 ? 4 : wire === 2 ? varint() : NaN;
    if (!(at + length <= bytes.length)) throw new Error("this is not an ONNX file, or it is cut off");
    fields.push([number, bytes.subarray(at, at + length)]);
    at += length;
  }
  return fields;
}

const all = (fields, number) => fields.filter(([each]) => each === number).map(([, value]) => value);
const one = (fields, number) => all(fields, number).at(-1);

/** Return the metadata of an ONNX file as an object of strings. */
export function metadataOf(bytes) {
  const pairs = all(fieldsOf(bytes), MODEL.metadata).map((pair) => fieldsOf(pair));
  return Object.fromEntries(pairs.map((pair) => [text(one(pair, 1)), text(one(pair, 2))]));
}

/** Return name and float weights of the tensors in a graph with these names, by name. */
function tensorsOf(graph, names) {
  const tensors = {};
  for (const bytes of all(graph, GRAPH.initializer)) {
    const fields = fieldsOf(bytes);
    const name = text(one(fields, TENSOR.name) ?? new Uint8Array());
    const raw = one(fields, TENSOR.raw) ?? one(fields, TENSOR.floats);
    if (names.includes(name) && one(fields, TENSOR.type) === FLOAT && raw instanceof Uint8Array) {
      tensors[name] = new Float32Array(raw.slice().buffer);
    }
  }
  return tensors;
}

/**
 * Return the classifier at the end of a graph, {features, weight, bias}: the name of the feature map (1, C, h, w) whose
 * average over positions it reads, its weight (classes x C) and bias. Null if the graph ends in another way.
 */
export function classifierOf(bytes) {
  const graph = fieldsOf(one(fieldsOf(bytes), MODEL.graph));
  const output = text(one(fieldsOf(all(graph, GRAPH.output)[0]), 1));
  const nodes = all(graph, GRAPH.node).map((node) => {
    const fields = fieldsOf(node);
    const [inputs, outputs] = [NODE.input, NODE.output].map((number) => all(fields, number).map(text));
    return { type: text(one(fields, NODE.type)), inputs, outputs, attributes: all(fields, NODE.attribute) };
  });
  const writer = (name) => nodes.find((node) => node.outputs.includes(name));
  const last = writer(output);
  if (last?.type !== "Gemm") return null;
  const attribute = (name) => last.attributes.map((a) => fieldsOf(a)).find((a) => text(one(a, 1)) === name);
  const [input, weight, bias] = last.inputs;
  const tensors = tensorsOf(graph, [weight, bias]);
  let before = writer(input);
  while (before && KEEP_VALUES.includes(before.type)) before = writer(before.inputs[0]);
  const transposed = attribute("transB");
  if (!AVERAGES.includes(before?.type) || !tensors[weight] || !tensors[bias] || !transposed) return null;
  return { features: before.inputs[0], weight: tensors[weight], bias: tensors[bias] };
}

/** Return the file with one more output, a tensor of its graph: messages that follow one another are merged. */
export function withOutput(bytes, name) {
  const field = (number, content) => {
    const length = [];
    for (let rest = content.length; ; rest = Math.floor(rest / 128)) {
      length.push((rest % 128) + (rest >= 128 ? 128 : 0));
      if (rest < 128) break;
    }
    return [number * 8 + 2, ...length, ...content];
  };
  const added = field(MODEL.graph, field(GRAPH.output, field(1, new TextEncoder().encode(name))));
  const longer = new Uint8Array(bytes.length + added.length);
  longer.set(bytes);
  longer.set(added, bytes.length);
  return longer;
}
