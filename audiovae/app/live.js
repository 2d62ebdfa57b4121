// The microphone to the server of this page, block by block, and what comes back to the loudspeaker.
// `element` is the page's part of it, and `trigger` tells Python that it ended.

const BLOCK_SECONDS = 0.02
const AHEAD_SECONDS = 0.04 // of answers that wait before they are played, so that a late one leaves no gap
const LATE_SECONDS = 0.4 // of them, of which all but those above are left out

// Runs beside the page. Every sample that is heard is answered by one: their difference is the time on the way.
const WORKLET = `
class Way extends AudioWorkletProcessor {
  constructor({processorOptions: {block, ahead, late}}) {
    super()
    Object.assign(this, {block: new Float32Array(block), ahead, late})
    Object.assign(this, {filled: 0, ready: [], waiting: 0, heard: 0, played: 0, playing: false, hear: "speech"})
    this.port.onmessage = ({data}) => {
      if (data.hear) { this.hear = data.hear; return }
      this.ready.push(data)
      this.waiting += data.length
      if (this.waiting >= this.ahead) this.playing = true
      if (this.waiting > this.late) while (this.waiting > this.ahead) this.take()
    }
  }
  take() {
    if (!this.waiting) return 0
    const first = this.ready[0], sample = first[0]
    if (first.length > 1) this.ready[0] = first.subarray(1)
    else this.ready.shift()
    this.waiting -= 1
    this.played += 1
    return sample
  }
  process([[input]], [[output]]) {
    if (input) for (const sample of input) {
      this.block[this.filled++] = sample
      if (this.filled === this.block.length) {
        this.heard += this.filled
        this.filled = 0
        this.port.postMessage({block: this.block.slice(), behind: this.heard - this.played})
      }
    }
    if (this.playing && !this.waiting) this.playing = false
    for (let i = 0; i < output.length; i++) {
      const speech = this.playing ? this.take() : 0
      output[i] = this.hear === "speech" ? speech : this.hear === "microphone" && input ? input[i] : 0
    }
    return true
  }
}
registerProcessor("way", Way)
`

const part = name => element.querySelector("#live-" + name)
const tell = text => { part("told").textContent = text }
let running = null

async function start() {
  part("start").disabled = true
  tell("Asking for the microphone.")
  try {
    const raw = {echoCancellation: false, noiseSuppression: false, autoGainControl: false, channelCount: 1}
    const microphone = await navigator.mediaDevices.getUserMedia({audio: raw})
    const context = new AudioContext({latencyHint: "interactive"})
    running = {microphone, context}
    const samples = seconds => Math.round(seconds * context.sampleRate)
    const source = URL.createObjectURL(new Blob([WORKLET], {type: "text/javascript"}))
    await context.audioWorklet.addModule(source)
    URL.revokeObjectURL(source)
    const processorOptions = {
      block: samples(BLOCK_SECONDS), ahead: samples(AHEAD_SECONDS), late: samples(LATE_SECONDS)
    }
    const way = new AudioWorkletNode(context, "way", {processorOptions, outputChannelCount: [1]})
    const socket = new WebSocket(`ws://${location.host}/live`)
    Object.assign(running, {socket, way, name: null, latency: 0, ended: false, waiting: 0})
    socket.binaryType = "arraybuffer"
    socket.onopen = () =>
      socket.send(JSON.stringify({sample_rate: context.sampleRate, lookahead: Number(part("lookahead").value)}))
    socket.onmessage = ({data}) => {
      if (data instanceof ArrayBuffer) {
        running.waiting -= 1
        way.port.postMessage(new Float32Array(data))
        if (running.ended && !running.waiting) finish()
        return
      }
      const answer = JSON.parse(data)
      if (answer.error) { finish(`${answer.error}.`); return }
      running.name = answer.name
      running.latency = answer.latency_ms
      context.createMediaStreamSource(microphone).connect(way).connect(context.destination)
      part("stop").disabled = false
    }
    socket.onclose = () => { if (running) finish("The server has ended.") }
    way.port.onmessage = ({data}) => {
      if (running.ended || !running.name) return
      socket.send(data.block)
      running.waiting += 1
      const device = 1000 * (context.baseLatency + (context.outputLatency || 0))
      const onTheWay = 1000 * data.behind / context.sampleRate + device
      tell(`Latency ${Math.round(running.latency + onTheWay)} ms: ${running.latency.toFixed(1)} ms of the method, ` +
        `${Math.round(onTheWay)} ms of blocks, buffers and the sound card.`)
    }
    way.port.postMessage({hear: part("hear").value})
  } catch (error) {
    finish(`No microphone: ${error.message}.`)
  }
}

function stop() {
  running.ended = true
  part("stop").disabled = true
  if (!running.waiting) finish()
}

function finish(failure) {
  if (!running && !failure) return
  const {microphone, context, socket, name} = running || {}
  running = null
  microphone?.getTracks().forEach(track => track.stop())
  context?.close()
  if (socket) { socket.onclose = null; socket.close() }
  part("start").disabled = false
  part("stop").disabled = true
  tell(failure || "Stopped; the last minute of it is below.")
  if (!failure && name) trigger("submit", {name})
}

part("start").addEventListener("click", start)
part("stop").addEventListener("click", stop)
part("hear").addEventListener("change", event => running?.way?.port.postMessage({hear: event.target.value}))
