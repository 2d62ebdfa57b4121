"use strict";
// One sound in: the stream's step hop by hop, and resynthesis.onnx; heard, seen and saved. io.json says how.

const LONGEST = 120; // seconds
const RANGE = 70; // dB that a spectrogram shows
const element = (id) => document.getElementById(id);
const say = (text) => { element("status").textContent = text; };
const pause = () => new Promise((done) => setTimeout(done));

let io, step, resynthesis, recording = null;

async function load() {
  ort.env.logLevel = "error"; // else it tells of processors that it does not know
  ort.env.wasm.numThreads = 1; // more threads would ask for headers that a plain server does not send
  ort.env.wasm.wasmPaths = new URL("runtime/", location.href).href;
  io = await (await fetch("model/io.json")).json();
  if (io.stream) step = await ort.InferenceSession.create(`model/${io.stream.file}`);
  resynthesis = await ort.InferenceSession.create("model/resynthesis.onnx");
  element("denoised").hidden = !step;
  showFacts();
  element("file").disabled = element("record").disabled = false;
  say("Ready.");
}

function showFacts() {
  const facts = {
    "Model": `${io.model.name || io.model.kind}, ${io.sample_rate} Hz`,
    "Latency": io.stream
      ? `${(1000 * io.stream.latency_samples / io.sample_rate).toFixed(0)} ms from a sample to its speech`
      : "this model does not stream, so nothing is denoised",
    "Licence of the model": io.model.licence || "not stated",
    "Made with": `audiovae ${io.audiovae}; ONNX Runtime Web ${ort.env.versions.web} (MIT), one thread`,
  };
  for (const [name, value] of Object.entries(facts)) {
    element("facts").append(Object.assign(document.createElement("dt"), { textContent: name }));
    element("facts").append(Object.assign(document.createElement("dd"), { textContent: value }));
  }
}

// What is computed ---------------------------------------------------------------------------------------------------

function initialState() {
  const arrays = { float32: Float32Array, int32: Int32Array };
  return Object.fromEntries(io.files[io.stream.file].state.map((part) => {
    const values = new arrays[part.dtype](part.shape.reduce((a, b) => a * b, 1));
    if (part.initial !== 0) values.set(part.initial);
    return [part.input, new ort.Tensor(part.dtype, values, part.shape)];
  }));
}

async function denoise(sound) {
  const { hop_length: hop, n_early: early } = io.stream;
  const parts = io.files[io.stream.file].state;
  const n = Math.ceil(sound.length / hop) + early; // hops of zeros at the end bring the rest
  const speech = new Float32Array(n * hop);
  let feeds = initialState();
  let shown = performance.now();
  for (let i = 0; i < n; i++) {
    const samples = new Float32Array(hop);
    samples.set(sound.subarray(i * hop, (i + 1) * hop));
    feeds.samples = new ort.Tensor("float32", samples, [hop]);
    const made = await step.run(feeds);
    speech.set(made.speech.data, i * hop);
    feeds = Object.fromEntries(parts.map((part) => [part.input, made[part.output]]));
    if (performance.now() - shown > 100) {
      element("progress").value = i / n;
      await pause();
      shown = performance.now();
    }
  }
  return speech.slice(early * hop, early * hop + sound.length);
}

async function resynthesise(sound) {
  const made = await resynthesis.run({
    wave: new ort.Tensor("float32", sound, [1, sound.length]),
    level: new ort.Tensor("float32", new Float32Array(1), [1]), // 0: measured
  });
  return made.resynthesis.data;
}

// What is heard ------------------------------------------------------------------------------------------------------

async function atModelRate(sound, rate) {
  if (rate === io.sample_rate) return sound;
  const context = new OfflineAudioContext(1, Math.ceil(sound.length * io.sample_rate / rate), io.sample_rate);
  const buffer = new AudioBuffer({ length: sound.length, sampleRate: rate });
  buffer.copyToChannel(sound, 0);
  const source = new AudioBufferSourceNode(context, { buffer });
  source.connect(context.destination);
  source.start();
  return (await context.startRendering()).getChannelData(0);
}

async function openFile(file) {
  const bytes = await file.arrayBuffer();
  const rate = rateOfWav(bytes); // decoding resamples, and tells nothing of it
  let decoded;
  try {
    decoded = await new OfflineAudioContext(1, 1, io.sample_rate).decodeAudioData(bytes);
  } catch {
    say(`${file.name}: this browser cannot read it; give a WAV, FLAC, MP3 or OGG file.`);
    return;
  }
  const sound = new Float32Array(decoded.length);
  for (let c = 0; c < decoded.numberOfChannels; c++) {
    decoded.getChannelData(c).forEach((sample, i) => { sound[i] += sample / decoded.numberOfChannels; });
  }
  const mixed = decoded.numberOfChannels > 1 ? `, the mean of ${decoded.numberOfChannels} channels` : "";
  const from = rate === null ? "at" : rate === io.sample_rate ? "at its own" : `resampled from ${rate} to`;
  await work(sound, `${file.name} (${from} ${io.sample_rate} Hz${mixed})`, file.name.replace(/\.\w+$/, ""));
}

function rateOfWav(bytes) {
  const view = new DataView(bytes);
  const text = (at) => String.fromCharCode(...new Uint8Array(bytes, at, 4));
  if (bytes.byteLength < 44 || text(0) !== "RIFF" || text(8) !== "WAVE") return null;
  for (let at = 12; at + 16 < bytes.byteLength; at += 8 + view.getUint32(at + 4, true)) {
    if (text(at) === "fmt ") return view.getUint32(at + 12, true);
  }
  return null;
}

async function record() {
  if (recording) return stop();
  const plain = { echoCancellation: false, noiseSuppression: false, autoGainControl: false };
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: plain });
  } catch (error) {
    say(`No microphone: ${error.message}. Allow it for this page, or open a file.`);
    return;
  }
  const context = new AudioContext();
  await context.audioWorklet.addModule("capture.js");
  const node = new AudioWorkletNode(context, "capture");
  const blocks = [];
  node.port.onmessage = ({ data }) => {
    blocks.push(data);
    const seconds = blocks.length * data.length / context.sampleRate;
    say(`Recording: ${seconds.toFixed(1)} s.`);
    if (seconds >= LONGEST && recording) stop();
  };
  context.createMediaStreamSource(stream).connect(node);
  recording = { stream, context, node, blocks };
  element("record").textContent = "Stop";
  element("record").classList.add("on");
  element("file").disabled = true;
}

async function stop() {
  const { stream, context, node, blocks } = recording;
  recording = null;
  element("record").textContent = "Record";
  element("record").classList.remove("on");
  node.port.onmessage = null;
  stream.getTracks().forEach((track) => track.stop());
  await context.close();
  const sound = new Float32Array(blocks.reduce((n, block) => n + block.length, 0));
  let n = 0;
  for (const block of blocks) { sound.set(block, n); n += block.length; }
  const rate = context.sampleRate;
  const from = rate === io.sample_rate ? "at" : `resampled from ${rate} to`;
  await work(await atModelRate(sound, rate), `Your recording (${from} ${io.sample_rate} Hz)`, "recording");
}

async function work(sound, what, name) {
  const seconds = sound.length / io.sample_rate;
  if (!sound.length || seconds > LONGEST) {
    element("file").disabled = false;
    say(`${what}: ${sound.length ? `${seconds.toFixed(0)} s, and the page takes ${LONGEST} s at most` : "no sound"}.`);
    return;
  }
  element("file").disabled = element("record").disabled = true;
  element("progress").hidden = false;
  say(`${what}: working.`);
  await pause();
  let told;
  try {
    told = await makeAll(sound, name);
  } catch (error) {
    say(`${what}: ${error.message}`);
  }
  element("progress").hidden = true;
  element("file").disabled = element("record").disabled = false;
  if (told !== undefined) say(`${what}: done.${told}`);
}

async function makeAll(sound, name) {
  const seconds = sound.length / io.sample_rate;
  const made = { heard: sound };
  let told = "";
  if (step) {
    const began = performance.now();
    made.denoised = await denoise(sound);
    const factor = (performance.now() - began) / 1000 / seconds;
    told += ` Denoised at ${factor.toFixed(2)} times its duration.`;
    document.body.dataset.factor = factor;
  }
  made.resynthesised = await resynthesise(sound);
  const loudest = spectrogram(sound).reduce((most, value) => Math.max(most, value), 1e-20);
  for (const [id, wave] of Object.entries(made)) show(id, wave, loudest);
  element("heard").querySelector("a").download = `${name}-heard.wav`;
  element("scale").textContent = `Up to ${io.sample_rate / 2} Hz, ${seconds.toFixed(1)} s; `
    + `${RANGE} dB from black to the loudest of what was heard, in all pictures.`;
  element("results").hidden = element("scale").hidden = false;
  return told;
}

// What is seen and saved ---------------------------------------------------------------------------------------------

function show(id, wave, loudest) {
  const figure = element(id);
  const url = URL.createObjectURL(new Blob([wav(wave)], { type: "audio/wav" }));
  const link = figure.querySelector("a");
  if (link.href) URL.revokeObjectURL(link.href);
  link.href = url;
  figure.querySelector("audio").src = url;
  draw(figure.querySelector("canvas"), wave, loudest);
}

function wav(wave) { // 32-bit float, one channel
  const view = new DataView(new ArrayBuffer(58 + 4 * wave.length));
  const text = (at, word) => [...word].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 50 + 4 * wave.length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 18, true); view.setUint16(20, 3, true); view.setUint16(22, 1, true);
  view.setUint32(24, io.sample_rate, true); view.setUint32(28, 4 * io.sample_rate, true);
  view.setUint16(32, 4, true); view.setUint16(34, 32, true);
  text(38, "fact"); view.setUint32(42, 4, true); view.setUint32(46, wave.length, true);
  text(50, "data"); view.setUint32(54, 4 * wave.length, true);
  wave.forEach((sample, i) => view.setFloat32(58 + 4 * i, sample, true));
  return view.buffer;
}

const SIZE = 512, COLUMNS = 720, BINS = SIZE / 2 + 1; // of a picture

function spectrogram(wave) { // power, column after column
  const powers = new Float32Array(COLUMNS * BINS);
  const real = new Float64Array(SIZE), imag = new Float64Array(SIZE);
  for (let column = 0; column < COLUMNS; column++) {
    const start = Math.round((column + 0.5) / COLUMNS * wave.length) - SIZE / 2;
    for (let i = 0; i < SIZE; i++) {
      real[i] = (wave[start + i] || 0) * Math.sin(Math.PI * (i + 0.5) / SIZE);
      imag[i] = 0;
    }
    fft(real, imag);
    for (let f = 0; f < BINS; f++) powers[column * BINS + f] = real[f] ** 2 + imag[f] ** 2;
  }
  return powers;
}

function fft(real, imag) { // in place, of a power of two samples
  const n = real.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      [real[i], real[j]] = [real[j], real[i]];
      [imag[i], imag[j]] = [imag[j], imag[i]];
    }
  }
  for (let size = 2; size <= n; size *= 2) {
    for (let k = 0; k < size / 2; k++) {
      const cos = Math.cos(2 * Math.PI * k / size), sin = -Math.sin(2 * Math.PI * k / size);
      for (let a = k; a < n; a += size) {
        const b = a + size / 2;
        const x = real[b] * cos - imag[b] * sin, y = real[b] * sin + imag[b] * cos;
        real[b] = real[a] - x; imag[b] = imag[a] - y;
        real[a] += x; imag[a] += y;
      }
    }
  }
}

const COLOURS = [[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]];

function draw(canvas, wave, loudest) {
  const powers = spectrogram(wave), context = canvas.getContext("2d");
  const image = context.createImageData(COLUMNS, BINS);
  for (let column = 0; column < COLUMNS; column++) {
    for (let f = 0; f < BINS; f++) {
      const db = 10 * Math.log10(powers[column * BINS + f] / loudest + 1e-20);
      const place = Math.min(Math.max(1 + db / RANGE, 0), 1) * (COLOURS.length - 1);
      const i = Math.min(Math.floor(place), COLOURS.length - 2);
      const at = 4 * ((BINS - 1 - f) * COLUMNS + column);
      for (let c = 0; c < 3; c++) {
        image.data[at + c] = COLOURS[i][c] + (place - i) * (COLOURS[i + 1][c] - COLOURS[i][c]);
      }
      image.data[at + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}

// -------------------------------------------------------------------------------------------------------------------

element("record").addEventListener("click", record);
element("file").addEventListener("change", ({ target }) => {
  const [file] = target.files;
  target.value = "";
  if (file) openFile(file);
});
const drop = element("drop");
drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file && !element("file").disabled) openFile(file);
});
load().catch((error) => say(location.protocol === "file:"
  ? "A browser reads no models from a folder: serve it, for example with python -m http.server, and open that address."
  : `The model cannot be loaded: ${error.message}`));
