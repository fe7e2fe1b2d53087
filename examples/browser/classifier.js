// A classifier of `sanet export` in the browser: from an image to probabilities, and to the evidence for each class.

import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
import { classifierOf, metadataOf, withOutput } from "./onnx.js";
import { centreCrop } from "./resize.js";

ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;
ort.env.wasm.numThreads = 1; // more would need headers that a plain server does not send

export class Classifier {
  /** Open the bytes of an ONNX file that `sanet export` wrote. */
  static async open(bytes) {
    const classifier = new Classifier();
    const written = metadataOf(bytes).shuffle_attention;
    const { recipe, classes, num_classes: count } = written ? JSON.parse(written) : {};
    if (!recipe?.img_size) throw new Error("it does not say how to preprocess images; write it with sanet export");
    classifier.recipe = recipe;
    classifier.classes = Array.from({ length: count }, (_, number) => classes?.[number] ?? `class ${number}`);
    classifier.head = classifierOf(bytes);
    const file = classifier.head ? withOutput(bytes, classifier.head.features) : bytes;
    classifier.session = await ort.InferenceSession.create(file, { executionProviders: ["wasm"] });
    return classifier;
  }

  /** Return an image file as {width, height, pixels: RGB bytes}, turned upright, with transparent pixels on white. */
  async decode(file) {
    const upright = this.recipe.as_stored ? "none" : "from-image";
    const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: upright });
    const { width, height } = bitmap;
    const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
    context.fillStyle = "white";
    context.fillRect(0, 0, width, height);
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    const rgba = context.getImageData(0, 0, width, height).data;
    const pixels = new Uint8ClampedArray(width * height * 3);
    for (let n = 0; n < width * height; n++) {
      for (let channel = 0; channel < 3; channel++) pixels[3 * n + channel] = rgba[4 * n + channel];
    }
    return { width, height, pixels };
  }

  /** Return the input of the model, and the crop that it shows. */
  preprocess(image) {
    const { img_size: size, crop_pct: cropPct, interpolation, mean, std, in_chans: channels } = this.recipe;
    if (channels === 1) image = grey(image);
    const crop = centreCrop(image, size, cropPct, interpolation);
    const input = new Float32Array(channels * size * size);
    for (let channel = 0; channel < channels; channel++) {
      for (let n = 0; n < size * size; n++) {
        input[channel * size * size + n] = (crop.pixels[3 * n + channel] / 255 - mean[channel]) / std[channel];
      }
    }
    return { crop, input: new ort.Tensor("float32", input, [1, channels, size, size]) };
  }

  /**
   * Return {crop, probabilities, evidence}; evidence(c) is the map of class c, {width, height, values}. It is null if
   * the model does not end in a classifier of averages, or its last feature map has one position.
   */
  async classify(file) {
    const { crop, input } = this.preprocess(await this.decode(file));
    const [images] = this.session.inputNames;
    const [output] = this.session.outputNames;
    const results = await this.session.run({ [images]: input });
    const logits = results[output].data;
    const features = results[this.head?.features];
    const [height, width] = features?.dims.slice(2) ?? [];
    const largest = Math.max(...logits);
    const powers = Array.from(logits, (logit) => Math.exp(logit - largest));
    const sum = powers.reduce((a, b) => a + b, 0);
    return {
      crop,
      probabilities: powers.map((power) => power / sum),
      evidence: height * width > 1 ? (label) => this.evidence(features, label) : null,
    };
  }

  /** Return what each position adds to the logit of a class, whose mean over positions is the logit. */
  evidence({ data, dims: [, channels, height, width] }, label) {
    const values = new Float32Array(height * width).fill(this.head.bias[label]);
    for (let channel = 0; channel < channels; channel++) {
      const weight = this.head.weight[label * channels + channel];
      for (let n = 0; n < values.length; n++) values[n] += weight * data[channel * values.length + n];
    }
    return { width, height, values };
  }
}

/** Return an image in grey, as Pillow converts it to mode L. */
function grey({ width, height, pixels }) {
  const result = new Uint8ClampedArray(pixels.length);
  for (let n = 0; n < pixels.length; n += 3) {
    const [r, g, b] = pixels.subarray(n, n + 3);
    result.fill((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16, n, n + 3);
  }
  return { width, height, pixels: result };
}
